"""What is promised beyond training steps: whole runs, scores, answers, studies and the demo."""

from __future__ import annotations

from typing import Any

from benchmarks.targets import Reports, Target, Value

OURS = ("tessera mosld", "tessera mosld, compile on")


def listed(reports: Reports, name: str) -> list[dict[str, Any]]:
    return reports.get(name, {}).get("lines", [])


def end_to_end(rival: str) -> Value:
    """The least ratio over the batch sizes of a call: MoSLD as a run trains it to a rival."""

    def value(reports: Reports) -> float | None:
        rate = {(r["rows"], r["variant"]): r["tokens_per_second"] for r in listed(reports, "end_to_end")[1:]
                if "tokens_per_second" in r}  # fmt: skip
        found = []
        for rows in {rows for rows, _ in rate}:
            mine = [rate[rows, name] for name in OURS if (rows, name) in rate]
            if mine and (rows, rival) in rate:
                found.append(max(mine) / rate[rows, rival])
        return min(found, default=None)

    return value


def scoring(model: str) -> Value:
    """Samples/s of the studio to those of lm-evaluation-harness with the batch that suits it best."""

    def value(reports: Reports) -> float | None:
        rows = [row for row in reports.get("scoring-1b", {}).get("rows", []) if "samples_per_s" in row]
        mine = [row["samples_per_s"] for row in rows if row["model"] == model and row["who"] == "studio"]
        rivals = [row["samples_per_s"] for row in rows if row["model"] == model and row["who"] != "studio"]
        return mine[0] / max(rivals) if mine and rivals else None

    return value


def same_scores(reports: Reports) -> str:
    equal = [row for row in reports.get("scoring-1b", {}).get("equal", []) if row.get("model") == "base"]
    exact = equal[0].get("float32", equal[0]) if equal and "largest" in equal[0] else None
    return "" if exact is None else f"log-likelihoods differ by {exact['largest']:.1g} at most in float32"


def answers(name: str, other: str, field: str = "seconds", shape: str = "1b") -> Value:
    def value(reports: Reports) -> float | None:
        cases = reports.get(f"chat-{shape}", {}).get("cases", {})
        one = next((row for case, row in cases.items() if case.startswith(name) and "seconds" in row), None)
        if one is None:
            return None
        if not other:
            return one[field]
        beside = cases.get(other, {})
        return one[field] / beside[field] if field in beside else None

    return value


def study(reports: Reports) -> float | None:
    parts = listed(reports, "study")
    if len(parts) < 2:
        return None
    alone = [part["seconds"] for part in parts if part["at_once"] == 1]
    return alone[0] / min(part["seconds"] for part in parts) if alone else None


def demo(reports: Reports) -> float | None:
    return reports.get("demo", {}).get("seconds")


OTHERS = [
    Target("run on short rows, MoSLD / TRL with PEFT LoRA, unpacked", 2.0, end_to_end("trl lora")),
    Target("the same / TRL with packing", 1.0, end_to_end("trl lora, packing")),
    Target("scoring / lm-evaluation-harness, base", 3.0, scoring("base"), beside=same_scores),
    Target("scoring / lm-evaluation-harness, LoRA", 3.0, scoring("lora")),
    Target("4 answers of 4 methods / one, time", 1.5, answers("4 answers: mosld, l", "one answer: mosld"), most=True),
    Target("one answer / transformers' generate, base, time", 1.0, answers("one answer: base", "generate: base"),
           most=True),
    Target("one answer / transformers' generate, LoRA, time", 1.0, answers("one answer: lora", "generate: PEFT LoRA"),
           most=True),
    Target("first token, 1B", 150, answers("one answer: mosld", "", "first_ms"), most=True, unit="ms"),
    Target("answer of the bundled base on the CPU", 40, answers("one answer: mosld", "", "tokens_per_s", "base"),
           unit="tokens/s"),
    Target("demo on two cores of a CPU, after installation", 240, demo, most=True, unit="s"),
    Target("study of 8 short runs, one after another / several at once", 2.0, study),
]  # fmt: skip
