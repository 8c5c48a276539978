"""Chat templates: prompts as the model was taught to read them, and where the instruction ends.

Token ids are those of the tokenizer's own `apply_chat_template`: the rendered text carries every special token the
template wants, so none is added again (no double beginning-of-text).

System prompts: `None` sends no system message, and a template that has a default of its own then applies it; a text
sends that text, and a template that refuses or drops it is an error, never a silent change of the experiment.
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Bool
from jinja2.exceptions import TemplateError
from torch import Tensor

from safe_sail.errors import BadSettings, BadText, ChatTemplateMissing
from safe_sail.model.tokens import TokenBatch, content_mask

_PROBES = ("alpha", "Beta.", "7", "what?")
"""Instructions whose last characters have nothing in common, so that only the template's tokens can agree."""


def render_chat(
    tokenizer: Any, prompts: Sequence[str], *, system: str | None = None, add_generation_prompt: bool = True
) -> list[str]:
    """Each prompt as one user turn in the tokenizer's template, by default up to where the answer begins.

    Raises:
        ChatTemplateMissing: the tokenizer has no chat template.
        BadText: there is no prompt, or a prompt is empty.
        BadSettings: the template refuses or drops the system message.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ChatTemplateMissing(
            f"{tokenizer.name_or_path} has no chat template, so chat text cannot be built as the model was taught; use "
            f"an instruction-tuned model, plain texts, or set `tokenizer.chat_template`."
        )
    if isinstance(prompts, str):
        raise BadText(f"expected a sequence of prompts, got one str ({prompts[:40]!r}); put it in a list.")
    if not prompts:
        raise BadText("expected at least one prompt, got none.")
    rendered = []
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            raise BadText(f"prompt {index}: expected a text, got {prompt!r}.")
        turns = [{"role": "user", "content": prompt}]
        if system is not None:
            turns.insert(0, {"role": "system", "content": system})
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
        except TemplateError as error:
            raise BadSettings(
                f"the chat template of {tokenizer.name_or_path} refuses these turns ({error}); leave `system` out and "
                f"put its text into the instruction."
            ) from error
        if system is not None and system.strip() not in text:
            raise BadSettings(
                f"the chat template of {tokenizer.name_or_path} drops the system message; leave `system` out and put "
                f"its text into the instruction."
            )
        rendered.append(text)
    return rendered


def chat_rows(tokenizer: Any, prompts: Sequence[str], *, system: str | None = None) -> list[list[int]]:
    """Token ids of each prompt in the tokenizer's template, up to where the answer begins.

    Raises:
        ChatTemplateMissing: the tokenizer has no chat template.
        BadText: there is no prompt, or a prompt is empty.
        BadSettings: the template refuses or drops the system message.
    """
    texts = render_chat(tokenizer, prompts, system=system)
    return [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]


def post_instruction_ids(tokenizer: Any, *, system: str | None = None) -> tuple[int, ...]:
    """Ids of the template's tokens after the instruction, up to where the answer begins; possibly none.

    They are what the renderings of several instructions have in common at their end, so a token that merges with the
    instruction's last character is not among them.

    Raises:
        ChatTemplateMissing: the tokenizer has no chat template.
        BadSettings: the template refuses or drops the system message.

    Source: Arditi et al. 2024, section 2.3 (post-instruction tokens), arXiv:2406.11717.
    """
    rows = chat_rows(tokenizer, _PROBES, system=system)
    shared = _n_shared([row[::-1] for row in rows])
    return tuple(rows[0][len(rows[0]) - shared :])


def instruction_mask(batch: TokenBatch, tokenizer: Any, *, system: str | None = None) -> Bool[Tensor, "batch seq"]:
    """True at the instruction's own tokens in a batch of `chat_rows`: neither padding, nor special, nor the template's.

    Raises:
        ChatTemplateMissing: the tokenizer has no chat template.
        BadSettings: the template refuses or drops the system message.
    """
    rows = chat_rows(tokenizer, _PROBES, system=system)
    before, after = _n_shared(rows), _n_shared([row[::-1] for row in rows])
    place = batch.position_ids
    inside = (place >= before) & (place < batch.lengths[:, None] - after)
    return inside & content_mask(batch, tokenizer)


def _n_shared(rows: Sequence[Sequence[int]]) -> int:
    """Number of ids that all rows have in common at their beginning."""
    shared = 0
    while shared < min(map(len, rows)) and len({row[shared] for row in rows}) == 1:
        shared += 1
    return shared
