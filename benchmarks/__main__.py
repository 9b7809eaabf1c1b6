"""``python -m benchmarks [NAME …] [--json] [--quick]``: measure, and print a row for each question."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks import report, sequential_steps, three_step_runs
from benchmarks.question import Question, ask
from benchmarks.stage import stage

QUESTIONS: dict[str, Question] = {
    question.name: question for question in (sequential_steps.QUESTION, *three_step_runs.QUESTIONS)
}
REPETITIONS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask the questions that are named, or all."""
    options = parser().parse_args(arguments)
    questions = options.names or list(QUESTIONS.values())
    answers = []
    with stage(broker=any(question.broker for question in questions)) as conninfo:
        for question in questions:
            print(f"{question.name}: {question.asks} …", file=sys.stderr, flush=True)
            answers.append(
                ask(
                    question,
                    conninfo,
                    repetitions=1 if options.quick else REPETITIONS,
                    quick=options.quick,
                )
            )
    print(report.as_json(answers) if options.json else report.as_table(answers))
    return 0


def parser() -> argparse.ArgumentParser:
    described = "\n".join(
        f"  {q.name:20} {q.asks} (target ≥ {q.at_least})" for q in QUESTIONS.values()
    )
    found = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure durable_flows beside a bare loop of INSERT + COMMIT.",
        epilog=f"names:\n{described}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("names", nargs="*", metavar="NAME", type=known, help="which; default all")
    found.add_argument("--json", action="store_true", help="print JSON instead of a table")
    found.add_argument(
        "--quick", action="store_true", help="tiny, and once: shows that it works, not how fast"
    )
    return found


def known(name: str) -> Question:
    """The question of this name. argparse makes its message of the error."""
    if name not in QUESTIONS:
        raise argparse.ArgumentTypeError(f"no question {name!r}; there are {', '.join(QUESTIONS)}")
    return QUESTIONS[name]


if __name__ == "__main__":
    sys.exit(main())
