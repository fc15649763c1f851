from pathlib import Path

import platformdirs
import pytest

from orchestrator.domain.errors import InvalidInput
from orchestrator.settings import Settings, read_settings


@pytest.fixture(autouse=True)
def users_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def refusal(environ: dict[str, str], cwd: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        read_settings(environ, cwd)
    return str(caught.value)


def test_everything_lies_under_home_by_default(home: Path, cwd: Path) -> None:
    settings = read_settings({"TUTTI_HOME": str(home)}, cwd)
    assert settings == Settings(
        home=home,
        database_url=f"sqlite:///{home}/tutti.db",
        mlflow_tracking_uri=f"sqlite:///{home}/mlflow.db",
        artifact_url=f"{home}/artifacts",
    )
    assert (settings.num_workers, settings.zero_stage, settings.ray_address) == (2, "auto", None)
    assert (settings.max_positions, settings.device_memory_gb) == (1024, None)
    assert (settings.offload, settings.offload_folder) == ("none", None)
    assert (settings.context_dtype, settings.context_disk_mb) == ("float32", 0)
    assert {settings.bases, settings.logs} == {home / "bases", home / "logs"}
    assert not home.exists()


def test_home_is_the_users_data_folder_unless_set(cwd: Path) -> None:
    assert read_settings({}, cwd).home == platformdirs.user_data_path("tutti")


def test_every_setting_has_its_variable(home: Path, cwd: Path) -> None:
    environ = {
        "TUTTI_HOME": str(home),
        "TUTTI_DATABASE_URL": "postgresql://db/tutti",
        "TUTTI_MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "TUTTI_ARTIFACT_URL": "s3://bucket/tutti",
        "TUTTI_RAY_ADDRESS": "ray://head:10001",
        "TUTTI_NUM_WORKERS": "4",
        "TUTTI_GANG_WORKERS": "8",
        "TUTTI_MIN_WORKERS": "2",
        "TUTTI_STEP_POSITIONS": "16384",
        "TUTTI_GROW_POSITIONS": "2048",
        "TUTTI_TASK_MEMORY_MB": "1024",
        "TUTTI_GANG_IDLE_S": "5",
        "TUTTI_GANG_TURN_S": "30",
        "TUTTI_START_TIMEOUT_S": "100",
        "TUTTI_ZERO_STAGE": "3",
        "TUTTI_DEVICE_MEMORY_GB": "11.5",
        "TUTTI_OFFLOAD": "nvme",
        "TUTTI_OFFLOAD_FOLDER": "/mnt/nvme",
        "TUTTI_MAX_POSITIONS": "4096",
        "TUTTI_CONTEXT_MEMORY_MB": "512",
        "TUTTI_CONTEXT_DISK_MB": "2048",
        "TUTTI_CONTEXT_DTYPE": "bfloat16",
        "TUTTI_WEIGHT_COPIES_MB": "64",
        "TUTTI_CHECKPOINT_S": "2.5",
        "TUTTI_LEASE_S": "7.5",
        "TUTTI_CACHE_TTL_S": "5",
        "TUTTI_WORKER_THREADS": "2",
        "TUTTI_MLFLOW_DRIFT": "revert",
    }
    assert {f"TUTTI_{name.upper()}" for name in Settings.model_fields} == set(environ)
    settings = read_settings(environ, cwd)
    assert settings.zero_stage == 3
    assert (settings.num_workers, settings.gang_workers, settings.min_workers) == (4, 8, 2)
    assert (settings.step_positions, settings.grow_positions) == (16384, 2048)
    assert (settings.task_memory_mb, settings.gang_idle_s, settings.gang_turn_s) == (1024, 5, 30)
    assert (settings.lease_s, settings.start_timeout_s) == (7.5, 100)
    assert (settings.offload, settings.offload_folder) == ("nvme", Path("/mnt/nvme"))
    assert (settings.device_memory_gb, settings.max_positions) == (11.5, 4096)
    assert (settings.context_memory_mb, settings.context_disk_mb) == (512, 2048)
    assert (settings.context_dtype, settings.weight_copies_mb) == ("bfloat16", 64)
    assert (settings.checkpoint_s, settings.cache_ttl_s) == (2.5, 5)
    assert settings.mlflow_drift == "revert"
    assert settings.database_url == "postgresql://db/tutti"
    assert settings.ray_address == "ray://head:10001"


def test_the_environment_wins_over_the_file(home: Path, cwd: Path) -> None:
    (cwd / "tutti.toml").write_text("num_workers = 3\nzero_stage = 3\n")
    environ = {"TUTTI_HOME": str(home), "TUTTI_NUM_WORKERS": "5"}
    settings = read_settings(environ, cwd)
    assert (settings.num_workers, settings.zero_stage) == (5, 3)


def test_the_working_folders_file_wins_over_homes(home: Path, cwd: Path) -> None:
    home.mkdir()
    (home / "tutti.toml").write_text("num_workers = 3\n")
    environ = {"TUTTI_HOME": str(home)}
    assert read_settings(environ, cwd).num_workers == 3
    (cwd / "tutti.toml").write_text("num_workers = 4\n")
    assert read_settings(environ, cwd).num_workers == 4


def test_a_file_may_say_where_home_is(home: Path, cwd: Path) -> None:
    (cwd / "tutti.toml").write_text(f'home = "{home}"\n')
    assert read_settings({}, cwd).home == home


def test_workers_find_the_offload_folder_wherever_they_run(home: Path, cwd: Path) -> None:
    environ = {"TUTTI_HOME": str(home), "TUTTI_OFFLOAD_FOLDER": "~/parts"}
    assert read_settings(environ, cwd).offload_folder == Path.home() / "parts"


def test_an_empty_variable_is_an_unset_one(cwd: Path, home: Path) -> None:
    environ = {"TUTTI_HOME": str(home), "TUTTI_NUM_WORKERS": "", "TUTTI_RAY_ADDRESS": ""}
    assert read_settings(environ, cwd).num_workers == 2


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("TUTTI_ZERO_STAGE", "7", "Input should be 'auto', 0 or 3"),
        ("TUTTI_ZERO_STAGE", "three", "Input should be 'auto', 0 or 3 (found 'three')"),
        ("TUTTI_ZERO_STAGE", "²", "TUTTI_ZERO_STAGE: "),
        ("TUTTI_NUM_WORKERS", "two", "valid integer"),
        ("TUTTI_NUM_WORKERS", "0", "greater than or equal to 1"),
        ("TUTTI_NUM_WORKERS", "-1", "greater than or equal to 1"),
        ("TUTTI_LEASE_S", "0.5", "greater than 1"),
        ("TUTTI_LEASE_S", "inf", "finite"),
        ("TUTTI_LEASE_S", "nan", "TUTTI_LEASE_S"),
        ("TUTTI_LEASE_S", "soon", "valid number"),
        ("TUTTI_OFFLOAD", "disk", "Input should be 'none', 'cpu' or 'nvme'"),
        ("TUTTI_OFFLOAD", "nvme", "needs offload_folder (TUTTI_OFFLOAD_FOLDER)"),
        ("TUTTI_DEVICE_MEMORY_GB", "0", "greater than 0"),
        ("TUTTI_DEVICE_MEMORY_GB", "16GB", "valid number"),
        ("TUTTI_MAX_POSITIONS", "15", "greater than or equal to 16"),
        ("TUTTI_CONTEXT_DTYPE", "int8", "'float32', 'bfloat16' or 'float16'"),
        ("TUTTI_CONTEXT_DISK_MB", "-1", "greater than or equal to 0"),
    ],
)
def test_a_wrong_variable_is_named(
    home: Path, cwd: Path, variable: str, value: str, message: str
) -> None:
    found = refusal({"TUTTI_HOME": str(home), variable: value}, cwd)
    assert found.startswith(f"{variable}: ")
    assert message in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zero_stage = 7", "tutti.toml: zero_stage: Input should be 'auto', 0 or 3 (found 7)"),
        ("home = 5", "tutti.toml: home: a folder is given as text (found 5)"),
        ('home = ["a"]', "tutti.toml: home: a folder is given as text"),
        ("[home]\npath = 1", "tutti.toml: home: a folder is given as text"),
        ("database_url = 5", "tutti.toml: database_url: Input should be a valid string"),
        ("lease_s = inf", "tutti.toml: lease_s: Input should be a finite number"),
        ("workers = 5", "tutti.toml: workers: unknown setting; allowed are artifact_url, "),
        ("[settings]\nnum_workers = 5", "tutti.toml: settings: unknown setting"),
        ("num_workers", "tutti.toml: cannot be read as TOML"),
        ("num_workers = 1\nnum_workers = 2", "tutti.toml: cannot be read as TOML"),
        ("\x00", "tutti.toml: cannot be read as TOML"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(cwd: Path, text: str, message: str) -> None:
    (cwd / "tutti.toml").write_text(text)
    assert f"{cwd}/{message}" in refusal({}, cwd)


def test_a_file_that_is_no_utf8_is_refused(cwd: Path) -> None:
    (cwd / "tutti.toml").write_bytes(b"home = '\xff'")
    assert "cannot be read as TOML" in refusal({}, cwd)


def test_all_wrong_settings_are_told_at_once(cwd: Path) -> None:
    (cwd / "tutti.toml").write_text("workers = 5\nlease_s = 0\n")
    found = refusal({"TUTTI_ZERO_STAGE": "9"}, cwd)
    assert len(found.splitlines()) == 3


def test_settings_do_not_change(home: Path, cwd: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        read_settings({"TUTTI_HOME": str(home)}, cwd).num_workers = 3
