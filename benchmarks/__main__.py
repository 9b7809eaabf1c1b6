"""``python -m benchmarks [NAME …] [--json] [--quick]``: measure, and print the rows of each question."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from benchmarks import (
    branches,
    claim_backlog,
    lookback_many,
    replay_1000,
    report,
    resume_latency,
    routing,
    sequential_steps,
    settle_many,
    start_beside_purge,
    start_latency,
    statements,
    three_step_runs,
)
from benchmarks.question import Answer, Question, ask
from benchmarks.stage import clear, stage

QUESTIONS: dict[str, Question] = {
    question.name: question
    for question in (
        sequential_steps.QUESTION,
        *three_step_runs.QUESTIONS,
        start_latency.QUESTION,
        resume_latency.QUESTION,
        routing.QUESTION,
        settle_many.QUESTION,
        lookback_many.QUESTION,
        replay_1000.QUESTION,
        *branches.QUESTIONS,
        *claim_backlog.QUESTIONS,
        statements.QUESTION,
        start_beside_purge.QUESTION,
    )
}
REPETITIONS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask the questions that are named, or all."""
    options = parser().parse_args(arguments)
    questions = options.names or list(QUESTIONS.values())
    start_beside_purge.ENDED = options.ended
    answers: list[Answer] = []
    with stage(broker=any(question.broker for question in questions)) as conninfo:
        for question in questions:
            tell(f"{question.name}: {question.asks}")
            clear()  # nothing that another question has left is to be carried along
            answers += ask(
                question,
                conninfo,
                repetitions=1 if options.quick else REPETITIONS,
                quick=options.quick,
                tell=partial(tell, indent="  "),
            )
    print(report.as_json(answers) if options.json else report.as_table(answers))
    return 0


def tell(text: str, *, indent: str = "") -> None:
    """Say how far it is, where it does not get between the rows."""
    print(f"{indent}{text}", file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure durable_flows beside what nothing could beat.",
        epilog="names:\n" + "\n".join(_described(question) for question in QUESTIONS.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("names", nargs="*", metavar="NAME", type=known, help="which; default all")
    found.add_argument("--json", action="store_true", help="print JSON instead of a table")
    found.add_argument(
        "--quick", action="store_true", help="tiny, and once: shows that it works, not how fast"
    )
    found.add_argument(
        "--ended",
        type=int,
        default=start_beside_purge.ENDED,
        metavar="N",
        help="start_beside_purge: so many ended runs (default %(default)s)",
    )
    return found


def _described(question: Question) -> str:
    targets = ", ".join(str(row.target) for row in question.rows)
    return f"  {question.name:23} {question.asks} (target {targets})"


def known(name: str) -> Question:
    """The question of this name. argparse makes its message of the error."""
    if name not in QUESTIONS:
        raise argparse.ArgumentTypeError(f"no question {name!r}; there are {', '.join(QUESTIONS)}")
    return QUESTIONS[name]


if __name__ == "__main__":
    sys.exit(main())
