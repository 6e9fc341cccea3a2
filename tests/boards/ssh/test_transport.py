"""Boards over SSH in the test's process: connections, the agent over them, what may go wrong."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import paramiko
import pytest
from pydantic import ValidationError

from wherry.artifact import hash_file
from wherry.errors import DeviceError, DeviceLostError, ToolError
from wherry.measurement import MeasureSettings
from wherry_devices.ssh import host_keys
from wherry_devices.ssh.config import resolve
from wherry_devices.ssh.parameters import SshParameters
from wherry_devices.transport.ssh import launch_command

SHOW = "import json, sys\nprint(json.dumps(sys.argv[1:]))\n"
HOSTILE = [
    "two words",
    "",
    "'single'",
    '"double"',
    "$(touch pwned)",
    "`touch pwned`",
    "$HOME",
    "a\nb",
    "-rf",
    "--",
    "*",
    "~",
    "back\\slash",
    "!history",
    "semi;colon",
    "a & b | c > d",
    "été 日本",
    "%s {x} #comment",
]


def test_a_board_is_probed(device, board):
    info = device(board).probe()
    assert info.machine
    assert (board.home / ".wherry/store/blobs").is_dir()


SHELLS = ("/bin/sh", "/bin/bash", "/bin/dash", "/bin/tcsh", "/usr/bin/zsh", "/usr/bin/fish")


@pytest.mark.parametrize("shell", [shell for shell in SHELLS if Path(shell).exists()])
def test_hostile_arguments_arrive_as_they_are(tmp_path, shell):
    command = launch_command(sys.executable, SHOW, HOSTILE)
    done = subprocess.run(
        [shell, "-c", command], cwd=tmp_path, capture_output=True, check=True, text=True
    )
    assert json.loads(done.stdout) == HOSTILE
    assert not list(tmp_path.iterdir())


def test_a_command_is_plain_whatever_it_carries():
    words = shlex.split(launch_command("~/a b/python3", SHOW, HOSTILE))
    assert words[:2] == ["exec", "~/a b/python3"]
    code = words[-1]
    assert not set(code) & set("'\\!\n$`"), "nothing that any shell changes within single quotes"


@pytest.mark.parametrize("python", ["a'b", "a\\b", "a!b", "a\nb", "-c"])
def test_a_python_that_cannot_be_quoted_is_refused(python):
    with pytest.raises(ValidationError, match="cannot hold"):
        SshParameters.model_validate({"host": "pi", "python": python})


@pytest.mark.parametrize("host", ["-oProxyCommand=x", "a b", ""])
def test_a_host_is_a_name(host):
    with pytest.raises(ValidationError):
        SshParameters.model_validate({"host": host})


def test_samples_stream_and_are_timed(device, board, hosted, free, samples):
    settings = MeasureSettings(rounds=1, warmup_s=0, warmup_runs=1, duration_s=0, min_runs=20)
    with device(board).session() as session, hosted(session) as runner:
        found = [float(outputs["y"].max()) for outputs in runner.infer(samples(300))]
        assert found == [2.0 * index for index in range(300)]
        timing = runner.time(samples(1)[0], settings)
    assert len(timing.infer_ns) == 20
    assert free(board)


def test_a_runner_that_crashes_is_told_by_its_signal(device, board, hosted, free, agents, samples):
    with device(board).session() as session:
        with pytest.raises(ToolError, match="SIGKILL"), hosted(session) as runner:
            (pid,) = set(agents(board)) - {session._board.pid}
            os.kill(pid, signal.SIGKILL)
            list(runner.infer(samples(1)))
        with hosted(session) as runner:  # the session goes on
            assert len(list(runner.infer(samples(3)))) == 3
    assert free(board)


def test_the_connection_is_cut_while_samples_stream(
    device, board, workstation, proxy, hosted, free, samples
):
    between = proxy(board)
    workstation.trust(board, port=between.port)
    found = []
    with (
        pytest.raises(DeviceLostError) as lost,
        device(board, port=between.port).session() as session,
        hosted(session) as runner,
    ):
        for outputs in runner.infer(samples(10_000)):
            found.append(outputs["y"])
            if len(found) == 100:
                between.cut()
    assert lost.value.where == "bench"
    assert 100 <= len(found) < 10_000
    assert free(board)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_the_connection_is_cut_in_the_middle_of_a_file(
    tmp_path, device, board, workstation, proxy, fraction, free
):
    between = proxy(board)
    workstation.trust(board, port=between.port)
    reached = device(board, port=between.port)
    path = tmp_path / "big"
    path.write_bytes(os.urandom(8 << 20))
    digest, size = hash_file(path), path.stat().st_size
    with pytest.raises(DeviceLostError), reached.session() as session:
        between.cut_after(sent=int(fraction * size))
        session._board.ship({"big": (digest, path)})
    store = board.home / ".wherry/store"
    assert not (store / "blobs" / digest).exists()
    assert free(board)
    (part,) = (store / "incoming").iterdir()
    arrived = part.stat().st_size
    assert 0 < arrived < size
    with reached.session() as session:
        before = between.sent
        folder = Path(session._board.ship({"big": (digest, path)}))
        assert between.sent - before < size - arrived + 200_000, "it goes on where it broke off"
    assert hash_file(folder / "big") == digest
    assert list((store / "incoming").iterdir()) == []


def test_a_part_that_was_damaged_on_the_board_is_sent_again(tmp_path, device, board, free):
    path = tmp_path / "big"
    path.write_bytes(os.urandom(1 << 20))
    digest = hash_file(path)
    with device(board).session():
        pass
    part = board.home / ".wherry/store/incoming" / f"{digest}.0"
    part.write_bytes(bytes(1 << 19))  # as a power cut leaves it
    with device(board).session() as session:
        folder = Path(session._board.ship({"big": (digest, path)}))
    assert hash_file(folder / "big") == digest
    assert free(board)


def test_what_packs_crosses_a_slow_link_packed(tmp_path, device, board, workstation, proxy, free):
    between = proxy(board, rate=1_000_000)
    workstation.trust(board, port=between.port)
    path = tmp_path / "text"
    path.write_bytes(b"0123456789abcdef" * (1 << 17))
    with device(board, port=between.port).session() as session:
        before = between.sent
        folder = Path(session._board.ship({"text": (hash_file(path), path)}))
        assert between.sent - before < 1_000_000, "2 MiB, of which the first chunks set the pace"
    assert (folder / "text").read_bytes() == path.read_bytes()
    assert free(board)


def test_a_link_that_freezes_is_given_up(device, board, workstation, proxy, hosted, free, samples):
    between = proxy(board)
    workstation.trust(board, port=between.port)
    with (
        pytest.raises(DeviceLostError, match="silent"),
        device(board, port=between.port, silence_s=2).session() as session,
        hosted(session) as runner,
    ):
        for count, _ in enumerate(runner.infer(samples(100_000))):
            if count == 50:
                between.freeze()
    assert free(board), "the agent gave up its silent host"


def test_a_link_of_one_megabit(tmp_path, device, board, workstation, proxy, hosted, free, samples):
    between = proxy(board, rate=125_000)
    workstation.trust(board, port=between.port)
    path = tmp_path / "file"
    path.write_bytes(os.urandom(100_000))
    with device(board, port=between.port).session() as session:
        folder = Path(session.ship({"file": (hash_file(path), path)}))
        assert (folder / "file").read_bytes() == path.read_bytes()
        with hosted(session) as runner:
            assert len(list(runner.infer(samples(200)))) == 200
    assert free(board)


def test_a_second_run_ships_nothing(tmp_path, device, board, workstation, proxy):
    between = proxy(board)
    workstation.trust(board, port=between.port)
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1 << 20))
    files = {"file": (hash_file(path), path)}
    with device(board, port=between.port).session() as session:
        first = session.ship(files)
    before = between.sent
    with device(board, port=between.port).session() as session:
        assert session.ship(files) == first
    assert between.sent - before < 100_000


def test_a_board_that_is_down(device, board):
    board.stop()
    with pytest.raises(DeviceLostError, match=r"cannot be reached.*refused"):
        device(board).probe()


def test_what_listens_is_no_ssh_server(device, board):
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(DeviceLostError, match="does not answer as an SSH server"),
    ):
        device(board, port=other.getsockname()[1], connect_timeout_s=1).probe()


def test_an_unknown_host(device, inprocess, workstation):
    stranger = inprocess()
    workstation.enter(stranger, trust=False)
    with pytest.raises(DeviceError, match=r"not known: ssh-ed25519 SHA256:.*devices trust"):
        device(stranger).probe()
    assert not workstation.known_hosts.exists()


def test_another_host_key(device, board, workstation):
    board.new_host_key()
    known = workstation.known_hosts.read_text()
    with pytest.raises(DeviceError, match=r"not the known one.*known_hosts:1 has another"):
        device(board).probe()
    assert workstation.known_hosts.read_text() == known


def test_a_revoked_host_key(device, board, workstation):
    with workstation.known_hosts.open("a") as stream:
        stream.write(f"@revoked * {board.host_key}\n")
    with pytest.raises(DeviceError, match="revoked"):
        device(board).probe()


def test_hashed_names_and_patterns(device, inprocess, workstation):
    for form in ("hashed", "pattern"):
        made = inprocess()
        workstation.enter(made, trust=False)
        name = f"[{made.host}]:{made.port}"
        name = paramiko.HostKeys.hash_host(name) if form == "hashed" else f"[127.0.*]:{made.port}"
        with workstation.known_hosts.open("a") as stream:
            stream.write(f"{name} {made.host_key}\n")
        assert device(made).probe().machine


def test_a_wrong_key(device, board):
    board.authorized.clear()
    with pytest.raises(DeviceError, match=r"id_ed25519: refused.*It accepts: publickey") as error:
        device(board).probe()
    assert not isinstance(error.value, DeviceLostError), "no retry will help"


def test_a_key_file_that_is_not_there(device, board):
    with pytest.raises(DeviceError, match="/no/such/key: there is no such file"):
        device(board, key="/no/such/key").probe()


def test_passwords(device, inprocess, workstation, monkeypatch):
    made = inprocess(password="s3cret")
    workstation.trust(made)
    monkeypatch.setenv("BOARD_PASSWORD", "s3cret")
    assert device(made, password_env="BOARD_PASSWORD").probe().machine
    monkeypatch.setenv("BOARD_PASSWORD", "wrong-one")
    with pytest.raises(DeviceError, match=r"password in \$BOARD_PASSWORD: refused") as error:
        device(made, password_env="BOARD_PASSWORD").probe()
    assert "wrong-one" not in str(error.value)


def test_a_host_of_the_ssh_configuration(device, board, workstation):
    (workstation.ssh / "more").mkdir()
    (workstation.ssh / "config").write_text("Include more/*.conf\nHost *\n  ConnectTimeout 7\n")
    (workstation.ssh / "more/one.conf").write_text(
        f"Host pi\n  HostName 127.0.0.1\n  Port {board.port}\n  User {board.user}\n"
        f"  IdentityFile {workstation.key}\n  IdentitiesOnly yes\n"
    )
    parameters = SshParameters.model_validate("pi")
    endpoint = resolve(parameters, "pi", {})
    assert (endpoint.host, endpoint.port, endpoint.user) == ("127.0.0.1", board.port, board.user)
    assert endpoint.keys == (workstation.key,)
    assert (endpoint.only_named_keys, endpoint.timeout_s) == (True, 7.0)


def test_no_file_of_known_hosts_to_write_to(workstation, board):
    workstation.alias("pi", board, UserKnownHostsFile="none")
    endpoint = resolve(SshParameters.model_validate("pi"), "pi", {})
    assert endpoint.trust_file is None
    with pytest.raises(DeviceError, match="UserKnownHostsFile"):
        host_keys.remember(endpoint, paramiko.ECDSAKey.generate())


def test_a_jump(inprocess, board, workstation):
    jump = inprocess()
    workstation.enter(jump)
    workstation.alias("jump", jump, IdentityFile=str(workstation.key))
    workstation.alias("pi", board, IdentityFile=str(workstation.key), ProxyJump="jump")
    endpoint = resolve(SshParameters.model_validate("pi"), "pi", {})
    assert [hop.port for hop in endpoint.hops] == [jump.port, board.port]


def test_a_noisy_login_shell(device, inprocess, workstation, noisy_shell):
    made = inprocess(shell=(noisy_shell("Welcome!\nwherry-bootstrap is a word\n"),))
    workstation.enter(made)
    assert device(made).probe().machine


def test_a_login_shell_that_lets_nobody_run_anything(device, inprocess, workstation, tmp_path):
    shell = tmp_path / "nologin"
    shell.write_text("#!/bin/sh\necho This account is not available.\nexit 1\n")
    shell.chmod(0o755)
    made = inprocess(shell=(str(shell),))
    workstation.enter(made)
    with pytest.raises(DeviceError, match="not available") as error:
        device(made).probe()
    assert not isinstance(error.value, DeviceLostError)


def test_a_board_without_python(device, board):
    with pytest.raises(DeviceError, match="no-such-python") as error:
        device(board, python="/no-such-python").probe()
    assert not isinstance(error.value, DeviceLostError)


def test_a_home_folder_with_spaces_and_letters(
    device, inprocess, workstation, hosted, free, samples
):
    made = inprocess(home="Maße und Gewichte 日本")
    workstation.enter(made)
    with device(made).session() as session, hosted(session) as runner:
        assert len(list(runner.infer(samples(3)))) == 3
    assert free(made)


def test_a_second_host_waits_for_the_lease(device, board, free):
    told = []
    with device(board).session() as first:
        with (
            pytest.raises(DeviceError, match=r"in use by .*waited 0.5 s"),
            device(board, wait_s=0.5).session(report=told.append),
        ):
            raise AssertionError("two hold one board")
        assert "is in use by" in told[0]
        assert first.info.machine
    with device(board, wait_s=5).session():
        pass
    assert free(board)


def test_a_host_that_dies_leaves_the_board_free(board, workstation, tmp_path, free, agents):
    script = tmp_path / "host.py"
    values = workstation.parameters(board, lease=str(board.home / "lease"), python=sys.executable)
    script.write_text(
        "import sys, json, threading\n"
        "from wherry.device import DeviceSpec\n"
        "from wherry_devices.ssh.parameters import SshParameters\n"
        "from wherry_devices.transport.ssh import SshConnection, reach\n"
        "from wherry_devices.session import BoardDevice\n"
        f"parameters = SshParameters.model_validate({values!r})\n"
        "spec = DeviceSpec('bench', 'ssh', parameters)\n"
        "class Services:\n    cancelled = threading.Event()\n"
        "def connect():\n"
        "    link = reach(spec, Services.cancelled)\n"
        "    return SshConnection(link, parameters, Services, None)\n"
        "with BoardDevice('bench', connect).session() as session:\n"
        "    print('held', flush=True)\n"
        "    threading.Event().wait()\n"
    )
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, env=workstation.environment()
    ) as host:
        assert host.stdout.readline() == b"held\n"
        assert agents(board)
        host.kill()
    assert free(board)
