"""A service keeps its prompts while registry and store are away, and hears of a promotion after the
time to live. Real databases, stores and threads; only the clock is the test's."""

import asyncio
import contextlib
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from encoders.files.weights_file import dump_tensors
from orchestrator import prompt_loading
from orchestrator.domain.errors import IntegrityError, InvalidInput, UnknownName
from orchestrator.domain.prompt_version import Lineage, PromptRef, PromptVersion, TrainedPrompt
from orchestrator.prompt_loading import RETRY_S, PromptLoader
from orchestrator.registry import migrate
from orchestrator.registry.errors import DatabaseUnavailable
from orchestrator.sdk import Tutti
from orchestrator.settings import read_settings
from tests.postgres_server import postgres_server

TTL_S = 60.0
PRODUCTION = "colour@production"
SIZES = {"num_virtual_tokens": 4, "token_dim": 8}


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Service:
    """A client with a cache, and the registry it asks."""

    tutti: Tutti
    stop_database: Callable[[], object]
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.loader = self.restarted()

    def restarted(self) -> PromptLoader:
        """A loader of a new process: only the folder is the same."""
        return PromptLoader(Tutti(self.tutti.settings).parts, TTL_S, self.clock)

    def publish(self, seed: int) -> PromptVersion:
        """Register a version with weights of its own, and promote it."""
        parts = self.tutti.parts
        tokens = torch.full((4, 8), float(seed))
        artifact = parts.artifacts.put_bytes(dump_tensors({"prompt_embeddings": tokens}))
        config = {"template": "{prompt:4}{word} {colour}", "answer": "colour", **SIZES}
        version, _ = parts.prompts.register(
            TrainedPrompt(
                task="colour",
                config=config,
                metrics={"accuracy": 0.5},
                artifacts={"encoder": artifact, "prompt_embeddings": artifact},
                lineage=Lineage("tiny", "f" * 64, {"train": "d"}, {"train": 8}, "s", seed, "0.1.0"),
            )
        )
        parts.prompts.promote(PromptRef("colour", version.number), "production", "ann")
        return version

    def weights_file(self, version: PromptVersion) -> Path:
        digest = version.artifacts["prompt_embeddings"].digest
        return Path(self.tutti.settings.artifact_url) / "sha256" / digest[:2] / digest

    def copies(self) -> list[Path]:
        return list(self.tutti.settings.prompt_cache.iterdir())


def service_on(home: Path, url: str, stop_database: Callable[[], object]) -> Service:
    environ = {"TUTTI_HOME": str(home), "TUTTI_DATABASE_URL": url}
    return Service(Tutti(read_settings(environ, home)), stop_database)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    file = tmp_path / "tutti.db"
    made = service_on(
        tmp_path, f"sqlite:///{file}", lambda: file.rename(tmp_path / "moved-away.db")
    )
    yield made
    made.tutti.close()


def test_a_promotion_is_seen_after_the_time_to_live(service: Service) -> None:
    first, loader = service.publish(1), service.loader
    assert loader.load(PRODUCTION).version.digest == first.digest
    second = service.publish(2)
    service.clock.now += TTL_S - 1
    assert loader.load(PRODUCTION).ref == "colour@1"
    service.clock.now += 1
    loaded = loader.load(PRODUCTION)
    assert (loaded.ref, loaded.version.digest) == ("colour@2", second.digest)
    assert torch.equal(loaded.virtual_tokens, torch.full((4, 8), 2.0))
    assert loaded.checked_at.timestamp() == service.clock.now
    assert len(service.copies()) == 1


def away_sqlite(home: Path, stack: ExitStack) -> Service:
    file = home / "tutti.db"
    return service_on(home, f"sqlite:///{file}", lambda: file.rename(home / "moved-away.db"))


def away_postgres(home: Path, stack: ExitStack) -> Service:
    server = stack.enter_context(ExitStack())
    url = server.enter_context(postgres_server())
    migrate.upgrade(url)
    return service_on(home, url, server.close)


@pytest.mark.parametrize(
    "make", [away_sqlite, pytest.param(away_postgres, marks=pytest.mark.postgres)]
)
def test_it_answers_while_the_registry_is_away_and_says_how_old_the_answer_is(
    tmp_path: Path,
    make: Callable[[Path, ExitStack], Service],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with ExitStack() as stack:
        service = make(tmp_path, stack)
        service.publish(1)
        before = service.loader.load(PRODUCTION)
        service.tutti.close()
        service.stop_database()
        service.clock.now += 7200
        for loader in (service.loader, service.restarted()):
            caplog.clear()
            loaded = loader.load(PRODUCTION)
            assert torch.equal(loaded.virtual_tokens, before.virtual_tokens)
            assert (loaded.ref, loaded.checked_at) == ("colour@1", before.checked_at)
            (warning,) = (each for each in caplog.records if each.name == "tutti.cache")
            assert warning.levelno == logging.WARNING
            assert "serving colour@1, which it meant 2:00:00 (h:mm:ss) ago" in warning.message
            with pytest.raises(DatabaseUnavailable):
                loader.load("colour@never-asked")
        assert not (tmp_path / "tutti.db").exists()


def test_a_registry_that_is_away_is_not_asked_at_every_call(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    service.publish(1)
    service.loader.load(PRODUCTION)
    service.stop_database()
    service.clock.now += TTL_S
    for _ in range(3):
        service.loader.load(PRODUCTION)
    assert len(caplog.records) == 1
    service.clock.now += RETRY_S
    service.loader.load(PRODUCTION)
    assert len(caplog.records) == 2


def test_a_version_whose_weights_cannot_be_had_leaves_the_one_before(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    service.publish(1)
    service.loader.load(PRODUCTION)
    second = service.publish(2)
    file = service.weights_file(second)
    data = file.read_bytes()
    file.write_bytes(b"x" + data[1:])
    service.clock.now += TTL_S
    assert service.loader.load(PRODUCTION).ref == "colour@1"
    assert "the bytes are not what their digest says" in caplog.text
    file.write_bytes(data)
    service.clock.now += RETRY_S
    assert service.loader.load(PRODUCTION).ref == "colour@2"


@pytest.mark.parametrize("place", ["digest", "time", "version", "weights"])
def test_a_bit_flip_in_a_copy_is_found_and_the_prompt_fetched_again(
    service: Service, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    service.publish(1)
    before = service.loader.load(PRODUCTION)
    (copy,) = service.copies()
    whole = copy.read_bytes()
    parts = whole.split(b"\n", 3)
    at = {"digest": 0, "time": 65, "version": whole.index(b"accuracy"), "weights": -1}[place]
    flipped = bytearray(whole)
    flipped[at] ^= 1
    copy.write_bytes(flipped)
    assert torch.equal(service.restarted().load(PRODUCTION).virtual_tokens, before.virtual_tokens)
    assert "the cached copy of colour@production cannot be used" in caplog.text
    assert copy.read_bytes().split(b"\n", 3)[3] == parts[3]


def test_a_flipped_copy_is_never_served_while_the_registry_is_away(service: Service) -> None:
    service.publish(1)
    service.loader.load(PRODUCTION)
    (copy,) = service.copies()
    copy.write_bytes(copy.read_bytes()[:-1])
    service.stop_database()
    with pytest.raises(DatabaseUnavailable, match="there is no registry"):
        service.restarted().load(PRODUCTION)


def test_what_was_read_is_kept_in_memory_and_callers_get_tensors_of_their_own(
    service: Service,
) -> None:
    service.publish(1)
    first = service.loader.load(PRODUCTION)
    (copy,) = service.copies()
    copy.unlink()
    service.stop_database()
    second = service.loader.load(PRODUCTION)
    assert (second.version, second.checked_at) == (first.version, first.checked_at)
    second.virtual_tokens.zero_()
    assert torch.equal(service.loader.load(PRODUCTION).virtual_tokens, first.virtual_tokens)


@pytest.mark.parametrize("room", [0, 1, 2])
def test_memory_is_bounded_and_what_does_not_fit_comes_from_the_folder(
    service: Service, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_bytes = 4 * 8 * 4
    monkeypatch.setattr(prompt_loading, "MAX_BYTES_IN_MEMORY", room * num_bytes)
    service.publish(1)
    service.publish(2)
    loader = service.restarted()
    for _ in range(2):
        for ref in ("colour@1", "colour@2"):
            assert loader.load(ref).ref == ref
    for copy in service.copies():
        copy.unlink()
    service.stop_database()
    found = 0
    for ref in ("colour@2", "colour@1"):
        with contextlib.suppress(DatabaseUnavailable):
            found += loader.load(ref).ref == ref
    assert found == room


def test_a_version_with_altered_weights_and_no_copy_is_refused(service: Service) -> None:
    file = service.weights_file(service.publish(1))
    file.write_bytes(b"x" + file.read_bytes()[1:])
    with pytest.raises(IntegrityError, match="expected"):
        service.loader.load(PRODUCTION)


def test_what_the_registry_does_not_know_is_forgotten(service: Service) -> None:
    service.publish(1)
    service.loader.load(PRODUCTION)
    file = service.tutti.settings.home / "tutti.db"
    service.stop_database()
    migrate.upgrade(f"sqlite:///{file}")  # another registry in its place
    service.clock.now += TTL_S
    with pytest.raises(UnknownName):
        service.restarted().load(PRODUCTION)
    assert service.copies() == []


def test_a_clock_that_was_set_back_makes_no_copy_immortal(service: Service) -> None:
    service.publish(1)
    service.loader.load(PRODUCTION)
    service.publish(2)
    service.clock.now -= 1
    assert service.loader.load(PRODUCTION).ref == "colour@2"


def test_registries_that_share_a_home_do_not_mix_their_copies(
    service: Service, tmp_path: Path
) -> None:
    service.publish(1)
    service.loader.load(PRODUCTION)
    other = service_on(tmp_path, f"sqlite:///{tmp_path}/other.db", lambda: None)
    with pytest.raises(DatabaseUnavailable, match="other.db: there is no registry"):
        other.loader.load(PRODUCTION)


def test_a_folder_that_cannot_be_written_costs_a_warning(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    service.publish(1)
    service.tutti.settings.prompt_cache.parent.write_text("a file where the folder should be")
    assert service.loader.load(PRODUCTION).ref == "colour@1"
    assert "is not kept for later" in caplog.text


def test_threads_load_at_once_and_none_waits_for_one_that_hangs(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_loading, "WAIT_S", 0.01)
    service.publish(1)
    with ThreadPoolExecutor(8) as threads:
        loaded = list(threads.map(service.loader.load, [PRODUCTION, "colour", "colour@1"] * 8))
    assert {prompt.version.number for prompt in loaded} == {1}
    service.clock.now += TTL_S
    with service.loader._lock:  # a thread that asks a registry which does not answer
        assert service.loader.load(PRODUCTION).ref == "colour@1"


def test_a_coroutine_loads_without_blocking(service: Service) -> None:
    service.publish(1)

    async def serve() -> list[str]:
        loads = (asyncio.to_thread(service.tutti.load, PRODUCTION) for _ in range(4))
        return [prompt.ref for prompt in await asyncio.gather(*loads)]

    assert asyncio.run(serve()) == ["colour@1"] * 4


def test_the_time_to_live_is_a_setting_and_an_argument(tmp_path: Path) -> None:
    settings = read_settings({"TUTTI_HOME": str(tmp_path), "TUTTI_CACHE_TTL_S": "5"}, tmp_path)
    assert Tutti(settings)._cache_ttl_s == 5
    assert Tutti(settings, cache_ttl_s=0)._cache_ttl_s == 0


@pytest.mark.parametrize("ref", ["", "../../etc/passwd", "colour@", "a\nb@1", "x@' OR 1=1 --"])
def test_a_reference_that_is_none_is_refused_before_anything_is_read(
    service: Service, ref: str
) -> None:
    with pytest.raises(InvalidInput, match="is not a prompt reference"):
        service.loader.load(ref)
    assert not service.tutti.settings.prompt_cache.exists()


@pytest.mark.parametrize(
    ("line", "heavy"),
    [
        ("import orchestrator", "torch sqlalchemy mlflow ray transformers pydantic"),
        ("from orchestrator import Tutti; Tutti", "torch alembic mlflow ray transformers"),
    ],
)
def test_importing_the_api_costs_little(line: str, heavy: str) -> None:
    program = f"import sys; {line}; print(sorted(set({heavy.split()}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
