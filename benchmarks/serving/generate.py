"""transformers' batched `generate`, the peer that is no server: a process of its own that does nothing unless asked."""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path

from sgl_actors.bench.load import OUTPUT_TOKENS, Prompts

BATCH = 16


class Transformers:
    """transformers' batched `generate` in fp32, in a process that does nothing unless asked."""

    def __init__(self, checkpoint: Path, threads: int) -> None:
        """Load `checkpoint` (.gguf file or folder); returns when that is done."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_transformers, args=(theirs, str(checkpoint), threads), daemon=True
        )
        self._process.start()
        theirs.close()
        self._pipe.recv()

    def generate(self, prompts: Prompts, tokens: int = OUTPUT_TOKENS) -> dict[str, float]:
        """All prompts greedily, exactly `tokens` tokens each, in batches of `BATCH` one after the other; they have to be of one length."""
        seconds = 0.0
        for first in range(0, len(prompts), BATCH):
            self._pipe.send((prompts[first : first + BATCH], tokens))
            seconds += self._pipe.recv()
        return {
            "requests": len(prompts),
            "seconds": round(seconds, 3),
            "req_per_s": round(len(prompts) / seconds, 3),
            "output_tok_per_s": round(len(prompts) * tokens / seconds, 2),
        }

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)


def _transformers(pipe: Connection, checkpoint: str, threads: int) -> None:
    """The child: load once, then time one batch per message until the pipe closes."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    path = Path(checkpoint)
    source = {"gguf_file": path.name} if path.is_file() else {}
    folder = path.parent if path.is_file() else path
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **source).eval()
    pipe.send("loaded")
    while True:
        try:
            prompts, tokens = pipe.recv()
        except EOFError:
            return
        ids = torch.tensor(prompts)
        began = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        pipe.send(time.perf_counter() - began)
        assert out.shape == (len(prompts), ids.shape[1] + tokens)
