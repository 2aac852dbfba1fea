"""One line of text from a model that was loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from yaie_async.core.threads import run_detached

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


async def generate_line(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, *, tokens: int = 40
) -> str:
    """The most probable continuation of `prompt`, or the answer to it where there is a chat template; one line.

    **Cancellation:** control returns at once; the thread generates to its end and the text is dropped.

    **Raises:** what the model or the tokenizer raises.
    """
    return await run_detached(lambda: _generate(model, tokenizer, prompt, tokens), name="generate")


def _generate(model: Any, tokenizer: Any, prompt: str, tokens: int) -> str:
    if tokenizer.chat_template:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
    else:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    given = inputs["input_ids"].shape[1]
    room = getattr(model.config, "max_position_embeddings", None) or given + tokens
    output = model.generate(
        **inputs.to(model.device),
        max_new_tokens=max(1, min(tokens, room - given)),
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    text = tokenizer.decode(output[0][given:], skip_special_tokens=True)
    # A random model says anything, control characters among it.
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
