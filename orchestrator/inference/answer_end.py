"""Where a generated answer ends, and the text that it is."""

from collections.abc import Sequence
from dataclasses import dataclass

from encoders.text.tokenization import TextTokenizer


@dataclass(frozen=True)
class AnswerEnd:
    """An answer ends at the tokenizer's end token or where one of `stop_strings` is complete, which
    may span tokens; its text ends before either. White space around it is not part of it."""

    tokenizer: TextTokenizer
    stop_strings: tuple[str, ...] = ()

    def is_reached(self, ids: Sequence[int]) -> bool:
        """Whether `ids`, one or more, end the answer; those before the last did not."""
        if ids[-1] == self.tokenizer.eos_token_id:
            return True
        if not self.stop_strings:
            return False
        said = self._decode(ids)
        return any(stop in said for stop in self.stop_strings)

    def text(self, ids: Sequence[int]) -> str:
        """The answer in `ids`."""
        said = self._decode(ids)
        ends = [said.find(stop) for stop in self.stop_strings]
        return said[: min((end for end in ends if end >= 0), default=len(said))].strip()

    def _decode(self, ids: Sequence[int]) -> str:
        end = self.tokenizer.eos_token_id
        return self.tokenizer.decode([token for token in ids if token != end])
