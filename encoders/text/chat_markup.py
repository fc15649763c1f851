"""Chat markup: a template's text as the user's message, between a tokenizer's own chat tokens.

The chat template is rendered once, around a stand-in for the message, and split there: it never
sees (trims, escapes) what a message says, and nothing in a message becomes a control token.
"""

from dataclasses import dataclass, replace

from encoders.errors import TemplateError
from encoders.text.template import Piece, Special, Template, Text, Tokenize
from encoders.text.tokenization import TextTokenizer

_MESSAGE = "TheMessageOfTheUser"


@dataclass(frozen=True)
class ChatMarkup:
    """What a chat template writes before and after a user's message, up to the answer.

    Text, to be kept with a trained prompt: a chat template may write the day's date.
    """

    before: str
    after: str

    @classmethod
    def render(cls, tokenizer: TextTokenizer) -> "ChatMarkup":
        """The markup of the tokenizer's chat template.

        TemplateError if it has none, does not write a message once and unchanged, or would not
        give the ids that the tokenizer itself gives the whole text.
        """
        rendered = tokenizer.render_chat(_MESSAGE)
        before, found, after = rendered.partition(_MESSAGE)
        if not found or _MESSAGE in after:
            raise TemplateError(
                f"the tokenizer's chat template writes a message {rendered.count(_MESSAGE)} times "
                f"into its text; it must be there once, unchanged"
            )
        markup = cls(before, after)
        message = markup.wrap(Template(_MESSAGE, (Text(_MESSAGE),), "", ""), tokenizer)
        if message.encode_context({}, markup.text_encoder(tokenizer)) != tokenizer.encode(rendered):
            raise TemplateError(
                "the tokenizer reads text after its chat tokens differently than on its own, so "
                "chat prompts would not be exact; leave out `chat`"
            )
        return markup

    def wrap(self, template: Template, tokenizer: TextTokenizer) -> Template:
        """`template` with the markup around its context; its answer follows the markup directly."""
        if template.mask:
            raise TemplateError("a template with a masked answer cannot be put as a chat message")
        before, after = (
            tuple(map(_piece, tokenizer.split_controls(text))) for text in (self.before, self.after)
        )
        return replace(template, pieces=(*before, *template.pieces, *after), answer_prefix="")

    def text_encoder(self, tokenizer: TextTokenizer) -> Tokenize:
        """How the text between control tokens is tokenised: nothing in it becomes one.

        `<|im_end|>` in a row is read as the characters it has; where a tokenizer cannot do that,
        the row is refused with a TemplateError.
        """
        controls = {
            token_id: token
            for token, token_id in tokenizer.control_tokens(self.before + self.after).items()
            if token_id != tokenizer.unk_token_id
        }

        def encode(text: str) -> tuple[int, ...]:
            ids = tokenizer.encode(text, literally=True)
            if forbidden := controls.keys() & ids:
                names = ", ".join(sorted(controls[token_id] for token_id in forbidden))
                raise TemplateError(
                    f"the row holds {names}, which this tokenizer cannot read as plain text: in a "
                    f"chat it would pass for markup; remove it from the row"
                )
            return ids

        return encode


def _piece(part: str | int) -> Piece:
    return Text(part) if isinstance(part, str) else Special(part)
