"""The settings: priority of sources, validation, credentials and exported addresses."""

from __future__ import annotations

import json
import pickle

import pytest
from forecast.terms import errors
from workplace import ROOT, clean_environment, environment_of

from workshop.exports import exports_of
from workshop.settings import Settings, find_root, get_settings


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder that looks like a clone, as the current folder."""
    (tmp_path / "4_pipeline").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    with environment_of(clean_environment()):
        yield tmp_path


def test_root_is_the_clone_of_the_current_folder(root):
    """Commands act on the clone in which they are typed, whichever clone the package was installed from."""
    assert find_root(root / "4_pipeline") == root
    assert find_root(root.parent) == ROOT


def test_example_of_dotenv_and_table_of_ports_have_each_port():
    """Each server's default port is in `.env.example` and in the README of the servers."""
    example, page = (ROOT / ".env.example").read_text(), (ROOT / "server" / "README.md").read_text()
    for name, field in Settings.model_fields.items():
        if name.endswith("_port"):
            assert f"# WORKSHOP_{name.upper()}={field.default}\n" in example
            assert str(field.default) in page


def test_settings_order_is_running_then_environment_then_dotenv(root, monkeypatch):
    """The environment overrides `.env`, and the ports of running servers override both."""
    (root / ".env").write_text("WORKSHOP_MLFLOW_PORT=5101\nWORKSHOP_DASHBOARD_PORT=8101\n")
    assert get_settings().mlflow_port == 5101
    monkeypatch.setenv("WORKSHOP_MLFLOW_PORT", "5102")
    assert get_settings().mlflow_port == 5102
    settings = get_settings()
    settings.state.mkdir(parents=True)
    settings.ports_file.write_text(json.dumps({"mlflow_port": 5103}))
    assert get_settings().mlflow_port == 5102
    settings.pid_file.touch()
    assert get_settings().mlflow_port == 5103
    assert get_settings().dashboard_port == 8101


@pytest.mark.parametrize("value", ["many", "0", "65536"])
def test_setting_out_of_range_names_the_variable(root, monkeypatch, value):
    """An invalid port is an error with the variable, the value and the next step."""
    monkeypatch.setenv("WORKSHOP_FTP_PORT", value)
    with pytest.raises(errors.SettingsError) as caught:
        get_settings()
    assert "WORKSHOP_FTP_PORT" in str(caught.value)
    assert value in str(caught.value)
    assert "next:" in str(caught.value)


def test_credentials_are_generated_once_and_private(root, monkeypatch):
    """The password is random, stored in a file of mode 0600, and never shown by the settings or in an address."""
    settings = get_settings()
    with pytest.raises(errors.SettingsError, match="workshop up"):
        settings.credentials()
    user, password = settings.credentials(create=True)
    assert settings.credentials_file.stat().st_mode & 0o777 == 0o600
    assert get_settings().credentials(create=True) == (user, password)
    assert len(password.get_secret_value()) >= 24
    for secret in (password.get_secret_value(), "hush-hush"):
        settings = get_settings()
        assert secret not in repr(settings) + str(settings) + str(exports_of(settings))
        assert "@" not in settings.artifacts_uri
        monkeypatch.setenv("WORKSHOP_FTP_PASSWORD", "hush-hush")


def test_credentials_that_others_can_read_or_that_are_damaged_are_refused(root):
    """The error says how to fix the file."""
    settings = get_settings()
    settings.credentials(create=True)
    settings.credentials_file.chmod(0o644)
    with pytest.raises(errors.SettingsError, match="chmod 600"):
        settings.credentials()
    settings.credentials_file.write_text('{"ftp_user": ')
    with pytest.raises(errors.SettingsError, match="damaged"):
        settings.credentials()


def test_exported_address_is_not_explicit(root, monkeypatch):
    """An exported address follows a change of port; another clone's address, and one set by hand, are kept."""
    settings = get_settings()
    settings.state.mkdir(parents=True)
    settings.ports_file.write_text(json.dumps({"mlflow_port": 5104, "dask_port": 8804}))
    shell = exports_of(get_settings())
    settings.ports_file.write_text(json.dumps({"mlflow_port": 5105, "dask_port": 8805}))
    with environment_of(clean_environment() | shell):
        assert get_settings().explicit_tracking_uri is None
        assert get_settings().tracking_uri == "http://127.0.0.1:5105"
        assert get_settings().scheduler_address == "tls://127.0.0.1:8805"
        monkeypatch.setenv("WORKSHOP_STATE", str(root / "another"))
        assert get_settings().tracking_uri == get_settings().explicit_tracking_uri == "http://127.0.0.1:5104"
        monkeypatch.delenv("WORKSHOP_STATE")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5999")
        assert get_settings().tracking_uri == get_settings().explicit_tracking_uri == "http://127.0.0.1:5999"


def test_address_set_by_hand_is_exported_unchanged(root, monkeypatch):
    """The address of a team's server, set in a container, is exported to its shells and used there."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    with environment_of(clean_environment() | exports_of(get_settings())):
        assert get_settings().tracking_uri == get_settings().explicit_tracking_uri == "http://mlflow:5000"


def test_errors_are_pickled_without_loss():
    """Errors are pickled when they pass between processes of the cluster."""
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.PipelineError):
            error = kind("It failed.", value=3, expected="4", next_step="try 4")
            copy = pickle.loads(pickle.dumps(error))
            assert type(copy) is kind
            assert str(copy) == str(error) == "It failed.\n  found:    3\n  expected: 4\n  next:     try 4"
            assert copy.exit_code == error.exit_code
