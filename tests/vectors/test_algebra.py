"""Arithmetic with persona vectors: properties that must hold at every layer."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import PAIRS, make_vector

from persona_callbacks import InputError
from persona_callbacks.vectors import (
    Calibration,
    Counts,
    Evidence,
    add,
    basis,
    check_vectors,
    cosine_table,
    negate,
    orthogonalise,
    warn_if_weak,
)

A, B, C = (make_vector(trait, seed=layer, layer=layer) for trait, layer in (("a", 1), ("b", 2), ("c", 4)))


def test_cosine_table_is_that_of_the_directions_at_one_layer():
    table = cosine_table([A, B, C])
    rows = torch.stack([vector.directions[2] for vector in (A, B, C)]).double().numpy()
    expected = rows @ rows.T / np.outer(np.linalg.norm(rows, axis=1), np.linalg.norm(rows, axis=1))
    assert np.allclose(table, expected, atol=1e-6)
    assert torch.allclose(table.diagonal(), torch.ones(3))
    assert not torch.allclose(cosine_table([A, B, C], layer=4), table)
    with pytest.raises(InputError, match="unknown layer 9"):
        cosine_table([A, B], layer=9)


def test_sums_and_opposites():
    both = add([A, B], [2.0, -0.5], "both")
    assert torch.allclose(both.directions, 2 * A.directions - 0.5 * B.directions, atol=1e-6)
    assert (both.trait, both.probes) == ("both", A.probes)
    opposite = negate(A)
    assert opposite.trait == "not_a"
    assert torch.equal(add([A, opposite], [1.0, 1.0], "nothing").directions, torch.zeros(5, 32))
    measured = replace(
        A,
        counts=Counts(9, 9),
        evidence=Evidence(auc=(1.0,)),
        calibration=Calibration((0.0,), (1.0,), 1.0, 0.0, 1.0, 0.0),
    )
    assert (negate(measured).counts, negate(measured).evidence, negate(measured).calibration) == (
        None,
        Evidence(),
        None,
    )
    with pytest.raises(InputError, match="one for each of 2 vectors, found 1"):
        add([A, B], [1.0], "both")
    paired = replace(A, pairs=PAIRS)
    assert add([paired, B], [1, 1], "x").pairs == ()
    assert (negate(paired).pairs[0].trait, negate(paired).pairs[0].opposite) == (PAIRS[0].opposite, PAIRS[0].trait)
    assert orthogonalise(paired, [B]).pairs == PAIRS
    normed = replace(B, last_row_normed=True)
    assert add([A, normed], [1, 1], "x").last_row_normed


def test_validation_and_arithmetic_do_not_warn_of_weak_vectors_but_the_warning_does():
    weak = [replace(vector, counts=Counts(3, 50)) for vector in (A, B)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_vectors(weak)
        cosine_table(weak)
        add(weak, [1.0, 1.0], "both")
        basis(weak, 1)
    with pytest.warns(UserWarning, match="'.' is weak: it rests on 3 and 50 responses") as seen:
        warn_if_weak(weak)
    assert len(seen) == 2


def test_what_is_left_is_orthogonal_at_every_layer_and_the_rest_is_in_the_span():
    left = orthogonalise(A, [B, C, replace(negate(B), trait="d")])  # the last one adds nothing to the span
    for layer in range(5):
        for other in (B, C):
            cosine = torch.cosine_similarity(left.directions[layer], other.directions[layer], dim=0)
            assert abs(cosine) < 1e-5
        gone = (A.directions - left.directions)[layer].double().numpy()
        span = torch.stack([B.directions[layer], C.directions[layer]]).double().numpy()
        assert np.allclose(np.linalg.lstsq(span.T, gone, rcond=None)[0] @ span, gone, atol=1e-5)
    assert torch.allclose(orthogonalise(left, [B, C]).directions, left.directions, atol=1e-5)
    with pytest.raises(InputError, match="nothing of it is left"):
        orthogonalise(A, [B, replace(negate(A), trait="d")])


def test_basis_is_orthonormal_and_the_best_of_its_rank():
    vectors = [A, B, C]
    for rank in (1, 2, 3):
        found = basis(vectors, rank)
        assert found.shape == (5, rank, 32)
        for layer in range(5):
            rows = found[layer].double()
            assert torch.allclose(rows @ rows.T, torch.eye(rank, dtype=torch.float64), atol=1e-5)
            units = torch.stack([vector.unit_direction(layer) for vector in vectors]).double()
            missing = (units - units @ rows.T @ rows).square().sum()
            singular = torch.linalg.svdvals(units)
            assert missing.item() == pytest.approx(singular[rank:].square().sum().item(), abs=1e-5)
    for rank in (0, 4):
        with pytest.raises(InputError, match="expected 1 to 3"):
            basis(vectors, rank)


def test_basis_where_there_is_less_to_span():
    flat = A.directions.clone()
    flat[0] = 0
    twin = replace(A, trait="twin", directions=2 * flat)
    found = basis([replace(A, directions=flat), twin], 2)
    assert not found[0].any()
    assert not found[1:, 1].any()
    assert torch.allclose(found[1:, 0].norm(dim=1), torch.ones(4), atol=1e-5)
