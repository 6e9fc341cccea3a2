"""The boards of the tests themselves: what sshd does, they do."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import threading
import time

import paramiko
import pytest


@pytest.fixture
def connect(stack):
    """A client of paramiko, which knows the board's key: ``connect(board, key_filename=...)``."""

    def make(board, **options):
        client = stack.enter_context(contextlib.closing(paramiko.SSHClient()))
        kind, data = board.host_key.split()
        known = paramiko.PKey.from_type_string(kind, base64.b64decode(data))
        client.get_host_keys().add(f"[{board.host}]:{board.port}", kind, known)
        client.connect(
            board.host,
            board.port,
            board.user,
            allow_agent=False,
            look_for_keys=False,
            timeout=10,
            **options,
        )
        return client

    return make


@pytest.fixture
def client(board, workstation, connect):
    return connect(board, key_filename=str(workstation.key))


def run(client, command, text=b""):
    """Its status (paramiko has -1 for a signal), stdout and stderr."""
    stdin, stdout, stderr = client.exec_command(command, timeout=20)

    def send():  # while we read: neither side holds all of it
        stdin.write(text)
        stdin.channel.shutdown_write()

    sender = threading.Thread(target=send)
    sender.start()
    out, err = stdout.read(), stderr.read()
    sender.join()
    return stdout.channel.recv_exit_status(), out, err


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_commands_run_in_the_home_folder(client, board):
    status, out, err = run(client, "pwd; echo $HOME; cat; echo oops >&2; exit 7", b"in")
    assert (status, out, err) == (7, f"{board.home}\n{board.home}\nin".encode(), b"oops\n")


def test_a_signal_is_not_a_status(client):
    assert run(client, "kill -SEGV $$") == (-1, b"", b"")


def test_much_goes_both_ways(client):
    data = os.urandom(1 << 20) * 8
    assert run(client, "cat", data) == (0, data, b"")


def test_a_dropped_connection_ends_the_commands_stdin(client, board):
    _, stdout, _ = client.exec_command("echo $$; cat >/dev/null; touch ended; exec sleep 600")
    pid = int(stdout.readline())
    board.drop()
    deadline = time.monotonic() + 10
    while not (board.home / "ended").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (board.home / "ended").exists() and alive(pid)
    os.kill(pid, signal.SIGKILL)
    assert board.connections == 0


def test_sessions_outlive_the_listener(client, board, workstation, connect):
    board.stop()
    with pytest.raises(paramiko.ssh_exception.NoValidConnectionsError):
        connect(board, key_filename=str(workstation.key))
    assert run(client, "echo here")[1] == b"here\n"
    board.start()
    connect(board, key_filename=str(workstation.key))


def test_logins(inprocess, workstation, connect):
    board = inprocess(password="correct horse")
    with pytest.raises(paramiko.AuthenticationException):
        connect(board, key_filename=str(workstation.key))
    with pytest.raises(paramiko.AuthenticationException):
        connect(board, password="wrong")
    assert run(connect(board, password="correct horse"), "id -un")[1].decode() == f"{board.user}\n"
    workstation.enter(board)
    connect(board, key_filename=str(workstation.key))
    board.refuse = True
    with pytest.raises(paramiko.AuthenticationException):
        connect(board, key_filename=str(workstation.key), password="correct horse")


def test_another_board_at_the_address(board, workstation, connect):
    known = board.host_key
    board.new_host_key()
    assert board.host_key != known
    run(connect(board, key_filename=str(workstation.key)), "true")


def test_a_noisy_shell_speaks_first(inprocess, workstation, connect, noisy_shell):
    board = inprocess(shell=[noisy_shell("welcome\n$HOME 'quoted'\n", 0.2)])
    workstation.enter(board)
    client = connect(board, key_filename=str(workstation.key))
    assert run(client, "echo done")[1] == b"welcome\n$HOME 'quoted'\ndone\n"
