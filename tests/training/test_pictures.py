"""What a study prints at its end."""

from rich.console import Console

from persona_callbacks.callbacks import Reading
from persona_callbacks.training import RunResult
from persona_callbacks.training.pictures import summary


def result(name, preference):
    readings = tuple(
        Reading(step, {}, {"evil": float(step), "sycophancy": -1.0}, {}, preference if step else {}, {})
        for step in (0, 4)
    )
    return RunResult(name, 1.5, readings, {}, (), 1.0)


def printed(*results):
    console = Console(width=200)
    with console.capture() as capture:
        console.print(summary(results, (), ()))
    return capture.get()


def test_the_table_shows_the_preference_of_every_trait_that_has_pairs():
    text = printed(result("unsteered", {"evil": 0.5, "sycophancy": 0.25}), result("steered", {"evil": -0.125}))
    for cell in ("evil preference", "sycophancy preference", "+0.50", "+0.25", "-0.12", "–"):
        assert cell in text
    assert "preference" not in printed(result("unsteered", {}))
