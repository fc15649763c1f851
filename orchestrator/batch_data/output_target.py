"""Where a batch run's output goes: a folder of parts, or one file made of them at the end."""

import os
import posixpath
import stat
from dataclasses import dataclass
from pathlib import Path

from encoders.files.durable_file import make_folder
from orchestrator.batch_data.batch_input import Input
from orchestrator.batch_data.input_files import would_find
from orchestrator.batch_data.location import absolute, is_url, is_within
from orchestrator.batch_data.output_file import (
    is_leftover,
    list_names,
    read_output,
    write_new,
)
from orchestrator.batch_data.part_file import OutputFormat
from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.task_spec import check_name

MANIFEST = "_manifest.json"
RUN_MARK = "_run"
_REMEDY = "Give --output a new file or folder, for example answers.jsonl."


@dataclass(frozen=True)
class OutputTarget:
    """`url`: an absolute path or URL; `is_file` where one file is made of the parts."""

    url: str
    format: OutputFormat
    is_file: bool

    @classmethod
    def parse(cls, output: str | Path, output_format: str | None = None) -> "OutputTarget":
        """A path that ends in .jsonl or .parquet is one file, any other a folder (of JSONL if
        no format is given). Raises InvalidInput for a format unlike the name's ending."""
        url = absolute(output).rstrip("/")
        ending = posixpath.splitext(url)[1].lower().removeprefix(".")
        named = OutputFormat(ending) if ending in set(OutputFormat) else None
        if "::" in url or not posixpath.basename(url):
            raise InvalidInput(f"{output}: cannot be the output", _REMEDY)
        wanted = named or OutputFormat.JSONL
        if output_format is not None:
            wanted = _format(output_format)
        if named not in (None, wanted):
            raise InvalidInput(
                f"{output}: its name says {named}, the format given is {wanted}",
                "Leave --format out, or name the output by its format.",
            )
        return cls(url, wanted, named is not None)

    def parts_folder(self, run: str) -> str:
        """The folder itself; for one file a sibling `.NAME.parts-RUN`."""
        if not self.is_file:
            return self.url
        folder, _, name = self.url.rpartition("/")
        return f"{folder}/.{name}.parts-{check_name(run)}"

    @property
    def manifest(self) -> str:
        """`_manifest.json` in the folder, `NAME.manifest.json` beside the file."""
        return f"{self.url}.manifest.json" if self.is_file else f"{self.url}/{MANIFEST}"


def check_target(target: OutputTarget, source: Input) -> None:
    """Raise InvalidInput unless a new run can write there: a folder must be empty or absent, a file
    regular or absent (it is replaced), neither may be the input or become part of it, and the disk
    must let one write. Nothing is written but missing folders above it."""
    if _is_input(target, source):
        what = "it is the input, or would become part of it"
        raise InvalidInput(f"{target.url}: cannot be the output: {what}", _REMEDY)
    if not is_url(target.url):
        _check_disk(target)
    if not target.is_file and (names := list_names(target.url)):
        raise InvalidInput(
            f"{target.url}: cannot be the output: the folder holds {names[0]!r}"
            + (f" and {len(names) - 1} more" if len(names) > 1 else ""),
            "Give --output an empty or new folder; `tutti batch resume RUN` goes on with a run.",
        )


def open_target(target: OutputTarget, run: str) -> str:
    """Create the parts folder, mark it as this run's, and return it; again is well (resume).
    Raises InvalidInput where it holds another run's files, StoreUnavailable where nothing can be
    written."""
    folder = target.parts_folder(run)
    owner = run_of(folder)
    if owner is None and all(map(is_leftover, list_names(folder))):
        write_new(f"{folder}/{RUN_MARK}", f"{run}\n".encode())
        owner = run_of(folder)  # another run may have come first
    if owner != run:
        raise InvalidInput(f"{folder}: it holds files that are not of the run {run}", _REMEDY)
    return folder


def run_of(folder: str) -> str | None:
    """The run that a folder is marked as, None if it is not marked."""
    try:
        return b"".join(read_output(f"{folder}/{RUN_MARK}")).decode("utf-8", "replace").strip()
    except FileNotFoundError:
        return None


def _format(name: str) -> OutputFormat:
    try:
        return OutputFormat(name)
    except ValueError as error:
        allowed = " and ".join(OutputFormat)
        raise InvalidInput(f"{name!r} is no format of output; there are {allowed}") from error


def _is_input(target: OutputTarget, source: Input) -> bool:
    """Whether the target is an input file or folder, or a later run of that input would read it."""
    if target.url == source.source or would_find(source.source, target.url):
        return True
    read = {source.source, *(file.url for file in source.files)}
    if any(_same(target.url, each) for each in read):
        return True
    is_folder = all(file.url != source.source for file in source.files)
    return target.is_file and is_folder and is_within(target.url, source.source)


def _same(place: str, other: str) -> bool:
    if is_url(place) or is_url(other):
        return place == other
    try:
        return Path(place).samefile(other)
    except OSError:
        return False


def _check_disk(target: OutputTarget) -> None:
    path = Path(target.url)
    try:
        status = path.stat() if os.path.lexists(path) else None
        is_right = stat.S_ISREG if target.is_file else stat.S_ISDIR
        if status is not None and not is_right(status.st_mode):
            kind = "file" if target.is_file else "folder"
            raise InvalidInput(f"{path}: cannot be the output: it is not a {kind}", _REMEDY)
        make_folder(path.parent)
        folder = path if status is not None and not target.is_file else path.parent
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InvalidInput(f"{path}: cannot be the output: its folder is read-only", _REMEDY)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput(f"{path}: cannot be the output: {reason}", _REMEDY) from error
