"""Lines from projection difference to shift: against an independent fit, and coverage on simulated data sets."""

import numpy as np
import pytest
import torch
from builders import make_vector
from scipy import stats

from persona_callbacks import InputError
from persona_callbacks.screening import PredictionLine, find_lines, fit_line, load_lines, save_lines


def test_fit_equals_an_independent_one():
    vector = make_vector()
    norm = float(vector.direction().norm())
    generator = np.random.default_rng(0)
    x = generator.normal(size=12)
    y = 2 * x + 1 + 0.3 * generator.normal(size=12)
    line = fit_line(vector, "exact", "ours", list(x * norm), list(y * norm))
    expected = stats.linregress(x, y)
    assert line.slope == pytest.approx(expected.slope)
    assert line.intercept == pytest.approx(expected.intercept)
    assert line.correlation == pytest.approx(expected.rvalue)
    value, low, high = line.predict(0.5)
    assert value == pytest.approx(expected.slope * 0.5 + expected.intercept)
    residual = np.sqrt(((y - expected.slope * x - expected.intercept) ** 2).sum() / 10)
    half = stats.t.ppf(0.975, 10) * residual * np.sqrt(1 + 1 / 12 + (0.5 - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    assert (high - value) == pytest.approx(half, rel=1e-3)
    assert (value - low) == pytest.approx(half, rel=1e-3)


@pytest.mark.parametrize("degrees", [2, 3, 5, 20, 200])
def test_quantiles_of_students_distribution(degrees):
    flat = PredictionLine("tiny", "evil", 1, "exact", "ours", 0.0, 0.0, 1.0, degrees + 2, 0.0, 1.0, 0.0)
    _, _, high = flat.predict(0.0)
    assert high == pytest.approx(stats.t.ppf(0.975, degrees) * np.sqrt(1 + 1 / (degrees + 2)), rel=1e-9)


def test_the_interval_holds_the_next_data_set_as_often_as_it_says():
    vector = make_vector()
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(400):
        x = torch.randn(9, generator=generator, dtype=torch.float64)
        y = 1.5 * x - 1 + 0.5 * torch.randn(9, generator=generator, dtype=torch.float64)
        norm = float(vector.direction().norm())
        line = fit_line(vector, "exact", "ours", (x[:8] * norm).tolist(), (y[:8] * norm).tolist())
        _, low, high = line.predict(float(x[8]))
        inside += low <= float(y[8]) <= high
    assert 0.92 <= inside / 400 <= 0.98  # 95 %, and three standard errors of 400 draws


def test_lines_are_found_for_model_trait_layer_and_method(tmp_path):
    vector, other = make_vector(), make_vector("other", layer=2, seed=2)
    line = fit_line(vector, "exact", "ours", [0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.5, 3.0])
    save_lines([line], tmp_path / "lines.json")
    assert load_lines(tmp_path / "lines.json") == [line]
    assert find_lines([vector, other], "exact", [tmp_path / "lines.json"]) == {"evil": line}
    assert find_lines([vector], "approximate", [tmp_path / "lines.json"]) == {}
    (tmp_path / "no.json").write_text("[{}]")
    with pytest.raises(InputError, match=r"no\.json: expected lines that save_lines wrote"):
        load_lines(tmp_path / "no.json")
    with pytest.raises(InputError, match=r"none\.json: cannot be read"):
        load_lines(tmp_path / "none.json")
    with pytest.raises(InputError, match="at least 4 data sets"):
        fit_line(vector, "exact", "ours", [0.0, 1.0, 2.0], [0.0, 1.0, 2.0])
    with pytest.raises(InputError, match="the same projection difference"):
        fit_line(vector, "exact", "ours", [1.0] * 4, [0.0, 1.0, 2.0, 3.0])
