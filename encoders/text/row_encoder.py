"""Rows of a template to token ids and labels: one rule for training and inference. No torch.

**Truncation**: where a row is longer than `max_length`, the field `truncate` gives way from its
end. Its value, tokenised alone, keeps as many leading tokens as fit (one more would not); then the
row is encoded anew with the text of those. So ids are always those of a row that holds the shorter
text: no half characters, and none but true merges with what follows. Nothing else is ever cut.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

from encoders.errors import TemplateError
from encoders.text.chat_markup import ChatMarkup
from encoders.text.template import Template, Tokenize, field_value
from encoders.text.tokenization import TextTokenizer

IGNORED = -100  # the label of a position without loss, as in torch's cross_entropy

Ids = tuple[int, ...]
Row = Mapping[str, str]


@dataclass(frozen=True)
class EncodedRow:
    """A row's ids, virtual tokens negative (see Template), and its labels, position by position.

    Labels are the answer's tokens where it stands and -100 elsewhere (answer-only loss), not
    shifted: transformers' causal models shift them, its masked ones take them as they are.
    """

    input_ids: Ids
    labels: Ids


class RowEncoder:
    """Encodes rows of `template`; causal rows end with the answer, masked ones hold masks for it.

    max_length: the most tokens of a row; virtual tokens, special tokens and answer count (None: no
        limit). A longer row is cut by the rule above, or refused if `truncate` is None.
    chat: put the text before the answer as the user's message of a chat.

    Special tokens: a causal row's first text opens with the tokenizer's opening token, if it has
    one (in a chat the markup holds it); a masked row stands whole between [CLS] and [SEP].
    """

    def __init__(
        self,
        template: Template,
        tokenizer: TextTokenizer,
        max_length: int | None = None,
        truncate: str | None = None,
        chat: ChatMarkup | None = None,
    ) -> None:
        if truncate is not None:
            template.check_truncate(truncate)
            if max_length is None:
                raise TemplateError(f"{{{truncate}}} is to be cut, but max_length is not given")
        if template.mask and tokenizer.mask_token_id is None:
            raise TemplateError(
                "the tokenizer has no mask token; a masked answer needs a masked language model"
            )
        self.template = template if chat is None else chat.wrap(template, tokenizer)
        self.max_length = max_length
        self.truncate = truncate
        self._tokenizer = tokenizer
        self._is_chat = chat is not None
        self._tokenize: Tokenize = (
            tokenizer.encode if chat is None else chat.text_encoder(tokenizer)
        )
        self._bos = tokenizer.bos_token_id if chat is None and not template.mask else None

    def encode_answer(self, answer: str) -> Ids:
        """Token ids of an answer with its leading white space; TemplateError if there are none."""
        return self.template.encode_answer(answer, self._tokenize)

    def encode_context(self, row: Row, num_answer_tokens: int = 0) -> Ids:
        """What a model is given to answer: the ids before an answer of `num_answer_tokens`.

        A masked template gives the whole row, with as many masks. TemplateError: a field is
        missing, or the row with such an answer is longer than max_length and cannot be cut.
        """
        before, after = self._fitted(row, num_answer_tokens)
        return before + self._masks(num_answer_tokens) + after

    def encode_row(self, row: Row, *, ends_answer: bool = False) -> EncodedRow:
        """The ids and labels of a row that has its answer.

        `ends_answer` closes a causal answer with the tokenizer's end token, which a model needs to
        learn if it is to generate answers. TemplateError as in `encode_context`.
        """
        answer = self.encode_answer(field_value(row, self.template.answer))
        if ends_answer:
            answer += self._end()
        before, after = self._fitted(row, len(answer))
        said = self._masks(len(answer)) or answer
        labels = (IGNORED,) * len(before) + answer + (IGNORED,) * len(after)
        return EncodedRow(before + said + after, labels)

    def _masks(self, num_answer_tokens: int) -> Ids:
        mask = self._tokenizer.mask_token_id
        return (mask,) * num_answer_tokens if self.template.mask and mask is not None else ()

    def _end(self) -> Ids:
        end = self._tokenizer.eos_token_id
        if end is None or self.template.mask:
            why = "a masked answer" if self.template.mask else "this tokenizer"
            raise TemplateError(f"{why} has no end token; leave out ends_answer")
        return (end,)

    def _parts(self, row: Row) -> tuple[Ids, Ids]:
        """The ids before and after the answer."""
        before = self.template.encode_context(row, self._tokenize, self._bos)
        if not self.template.mask:
            return before, ()
        opening, closing = self._tokenizer.surroundings
        return opening + before, self.template.encode_tail(row, self._tokenize) + closing

    def _fitted(self, row: Row, num_answer_tokens: int) -> tuple[Ids, Ids]:
        """`_parts`, of a row cut to fit where it must be."""
        parts = self._parts(row)
        length = sum(map(len, parts)) + num_answer_tokens
        if self.max_length is None or length <= self.max_length:
            return parts
        if self.truncate is None:
            raise self._refusal("the row has", length, num_answer_tokens)
        shorter = self._shortened(row, self.truncate, self.max_length - num_answer_tokens)
        if shorter is None:
            without = f"without its field {{{self.truncate}}} the row still has"
            length = self._length({**row, self.truncate: ""}) + num_answer_tokens
            raise self._refusal(without, length, num_answer_tokens)
        return self._parts(shorter)

    def _refusal(self, who: str, length: int, num_answer_tokens: int) -> TemplateError:
        remedy = "Shorten the row, or raise max_length"
        if self.truncate is None:
            remedy += ", or name a field that gives way (truncate)"
        return TemplateError(
            f"{who} {length} tokens (virtual tokens and {num_answer_tokens} for the answer "
            f"counted); at most {self.max_length} are allowed. {remedy}"
        )

    def _shortened(self, row: Row, field: str, room: int) -> Row | None:
        """`row` with the longest head of `field` with which it has at most `room` tokens."""
        cuts = (0, *self._tokenizer.token_ends(row[field], literally=self._is_chat))

        def length(cut: int) -> int:
            return self._length({**row, field: row[field][:cut]})

        kept = bisect_right(cuts, room, key=length) - 1
        return {**row, field: row[field][: cuts[kept]]} if kept >= 0 else None

    def _length(self, row: Row) -> int:
        return sum(map(len, self._parts(row)))
