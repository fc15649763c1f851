"""Which prompt each row of a batch asks for, with their tables stacked; and rows composed of them.

Shapes: B rows, T input positions, Q and L slots (see row_layout), N rows of a stacked table, D
token_dim.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encoders.config import TaskType
from encoders.errors import PromptError
from encoders.modules.task_head import HEADS
from encoders.prompted.attached_prompt import AttachedPrompt
from encoders.prompted.base_traits import BaseTraits
from encoders.prompted.prefix_cache import PrefixStates
from encoders.prompted.row_layout import Alignment, RowLayout, lay_out


@dataclass(frozen=True)
class TableRows:
    """A stacked table [N, ...] (None where no row has any) and each row's part of it: `counts` [B]
    rows from `first` [B] on."""

    table: Tensor | None
    first: Tensor
    counts: Tensor

    def repeated(self, times: int) -> "TableRows":
        """Every row `times` times, as generate() repeats its input."""
        first, counts = (each.repeat_interleave(times) for each in (self.first, self.counts))
        return TableRows(self.table, first, counts)


class PromptRows:
    """The prompts of a batch. Each prompt's table is computed once, for all its rows."""

    def __init__(
        self,
        prompts: Sequence[AttachedPrompt],
        task_ids: Sequence[int | None],
        device: torch.device,
    ) -> None:
        self.prompts = prompts
        self._device = device
        tasks = [prompt.checked_task_id(id) for prompt, id in zip(prompts, task_ids, strict=True)]
        keys = [(prompt.name, task) for prompt, task in zip(prompts, tasks, strict=True)]
        self._unique = list(dict.fromkeys(keys))
        self._which = [self._unique.index(key) for key in keys]
        by_name = {prompt.name: prompt for prompt in prompts}
        self._of_unique = [by_name[name] for name, _ in self._unique]
        self._tables = [by_name[name].table(task) for name, task in self._unique]
        self.encoder_tokens = self._stack(lambda p: (0, p.num_encoder_tokens))
        self.decoder_tokens = self._stack(lambda p: (p.num_encoder_tokens, p.num_decoder_tokens))
        self.prefixes = self._stack(lambda p: (0, p.num_prefix))

    @property
    def task_type(self) -> TaskType | None:
        """The task of the batch: all prompts are for the base's."""
        return self.prompts[0].task_type

    @property
    def has_heads(self) -> bool:
        """Whether the task has heads, of which each prompt has its own."""
        return self.task_type in HEADS

    def by_prompt(self) -> Iterator[tuple[AttachedPrompt, Tensor]]:
        """Each prompt of the batch, with the indices of its rows."""
        names = [prompt.name for prompt in self.prompts]
        for prompt in {prompt.name: prompt for prompt in self.prompts}.values():
            index = [i for i, name in enumerate(names) if name == prompt.name]
            yield prompt, torch.tensor(index, device=self._device)

    def _stack(self, part: Callable[[AttachedPrompt], tuple[int, int]]) -> TableRows:
        """Stack `part` (start and count) of every prompt's table."""
        parts = [part(prompt) for prompt in self._of_unique]
        counts = torch.tensor([count for _, count in parts])
        first = counts.cumsum(0) - counts
        tables = [
            table[start : start + count].to(self._device)
            for table, (start, count) in zip(self._tables, parts, strict=True)
            if count
        ]
        which = torch.tensor(self._which)
        return TableRows(
            table=torch.cat(tables) if tables else None,
            first=first[which].to(self._device),
            counts=counts[which].to(self._device),
        )


@dataclass(frozen=True)
class ComposedRows:
    """Rows for one stack of the base: `inputs_embeds` [B, Q, D], and the prefixes if there are."""

    inputs_embeds: Tensor
    layout: RowLayout
    prefix: PrefixStates | None

    @property
    def attention_mask(self) -> Tensor:
        """[B, L], of all slots."""
        return self.layout.mask.long()

    @property
    def position_ids(self) -> Tensor:
        """[B, Q], from 0 in every row."""
        return self.layout.positions[:, self.layout.num_leading :]


def compose(
    traits: BaseTraits,
    embeds: Tensor,
    text_mask: Tensor,
    virtual: TableRows,
    prefixes: TableRows | None,
    alignment: Alignment,
    may_lead: bool = True,
) -> ComposedRows:
    """Put virtual tokens and prefixes before the texts `embeds` [B, T, D] where `text_mask` [B, T]
    is true. Raises PromptError for a row without text, or longer than the base can be given."""
    num_prefix = torch.zeros_like(virtual.counts) if prefixes is None else prefixes.counts
    layout = lay_out(text_mask, virtual.counts, num_prefix, alignment, may_lead)
    longest = int(layout.mask.sum(1).max())
    if traits.max_positions is not None and longest > traits.max_positions:
        raise PromptError(
            f"a row has {longest} positions, virtual tokens included, but the base has "
            f"{traits.max_positions}: cut the text"
        )
    source = [embeds.new_zeros(1, embeds.shape[-1]), embeds.flatten(0, 1)]
    if virtual.table is not None:
        source.append(virtual.table.to(embeds))
    rows = layout.embedding_rows(virtual.first)
    composed = torch.cat(source).index_select(0, rows.flatten()).view(*rows.shape, -1)
    prefix = None
    if prefixes is not None and prefixes.table is not None:
        slot_rows = layout.prefix_rows(prefixes.first)
        prefix = PrefixStates(prefixes.table, slot_rows, layout.num_leading)
    return ComposedRows(composed, layout, prefix)
