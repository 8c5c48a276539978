"""Options that several commands share; the only place of the commands that reads the environment."""

import os
from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr

DatabaseUrl = Annotated[
    str,
    typer.Option(
        "--database",
        envvar="SAFE_SAIL_DATABASE_URL",
        help="Where results are kept: sqlite:///FILE or postgresql://USER@HOST/NAME.",
    ),
]
DEFAULT_DATABASE = "sqlite:///safe-sail.db"

Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N; nothing is guessed.")]
Seed = Annotated[int, typer.Option(min=0, help="Decides every random choice.")]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder for files that the command writes.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table for people.")]

LLM_KEY = "SAFE_SAIL_LLM_KEY"
"""Variable that holds the key of the endpoint; a key on the command line would stand in every list of processes."""

KeptSae = Annotated[
    str | None, typer.Option("--sae", help="SAE in the database; may be left out where one SAE alone has contexts.")
]
Limit = Annotated[int, typer.Option(min=1, help="Features at most: those with the best concept scores first.")]
BaseUrl = Annotated[
    str | None,
    typer.Option(help=f"OpenAI-compatible endpoint, as http://127.0.0.1:8000/v1; its key stands in {LLM_KEY}."),
]
LlmModel = Annotated[str | None, typer.Option("--model", help="Name that the endpoint knows the language model by.")]
BudgetTokens = Annotated[int | None, typer.Option(help="Tokens that the run may use at most; prompts and answers.")]
BudgetMoney = Annotated[float | None, typer.Option(help="US dollars that the run may cost at most.")]
Prices = Annotated[Path | None, typer.Option(help="YAML file of prices beside the shipped table.")]
AnswerCache = Annotated[Path | None, typer.Option("--cache", help="File of answers: what it holds is not asked again.")]
InFlight = Annotated[int, typer.Option(min=1, help="Requests open at once at most; fewer after 429 answers.")]
Timeout = Annotated[float, typer.Option(help="Seconds of one attempt at most.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Ask again where an answer was no use before.")]
JudgeBaseUrl = Annotated[
    str | None, typer.Option(help=f"OpenAI-compatible endpoint that judges replies too; its key stands in {LLM_KEY}.")
]
JudgeModel = Annotated[str | None, typer.Option(help="Name that this endpoint knows the judge by.")]
JudgeBudgetTokens = Annotated[int | None, typer.Option(help="Tokens that the judge may use at most.")]
JudgeBudgetMoney = Annotated[float | None, typer.Option(help="US dollars that the judge may cost at most.")]
JudgeCache = Annotated[Path | None, typer.Option(help="File of the judge's answers: what it holds is not asked again.")]
RewardModel = Annotated[
    str | None, typer.Option(help="Classifier with one output, such as a reward or cost model, that scores replies.")
]
BatchOut = Annotated[
    Path | None,
    typer.Option(help="Folder for requests as OpenAI Batch files; with --batch-in, for those of the next batch."),
]
BatchIn = Annotated[
    list[Path] | None,
    typer.Option(help="Result file of such a batch; again for each file of all batches. Nobody else is asked."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what the run would cost; ask and write nothing.")]


def llm_key() -> SecretStr | None:
    """The key of the endpoint; None where there is none."""
    key = os.environ.get(LLM_KEY)
    return SecretStr(key) if key else None


def environment_for(database: str) -> dict[str, str]:
    """This program's environment, with the database that another process of it is to use."""
    return dict(os.environ) | {"SAFE_SAIL_DATABASE_URL": database}
