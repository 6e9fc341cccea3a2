"""The link of the tests itself: delay, rate, cut, freeze, down and up."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import types

import pytest


@pytest.fixture
def echo(stack):
    """A server that sends back what it gets, until the end."""
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    def answer(connection):
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(1 << 16):
                connection.sendall(data)

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    stack.callback(listener.shutdown, socket.SHUT_RDWR)
    host, port = listener.getsockname()
    return types.SimpleNamespace(host=host, port=port)


@pytest.fixture
def connect(stack):
    return lambda link: stack.enter_context(
        socket.create_connection((link.host, link.port), timeout=10)
    )


def read(connection, size):
    data = b""
    while len(data) < size and (more := connection.recv(size - len(data))):
        data += more
    return data


def seconds(connection, data):
    begun = time.monotonic()
    sender = threading.Thread(target=connection.sendall, args=(data,))
    sender.start()
    assert read(connection, len(data)) == data
    sender.join()
    return time.monotonic() - begun


def test_everything_arrives_and_ends(echo, proxy, connect):
    link = proxy(echo)
    connection = connect(link)
    data = bytes(range(256)) * 40000
    seconds(connection, data)
    connection.shutdown(socket.SHUT_WR)
    assert connection.recv(1) == b""
    assert link.sent == link.received == len(data)


def test_delay_and_rate(echo, proxy, connect):
    far = connect(proxy(echo, delay_s=0.05))
    assert seconds(far, b"x") >= 0.1
    assert seconds(far, b"x" * 1_000_000) >= 0.1
    assert seconds(connect(proxy(echo, rate=100_000)), b"x" * 50_000) >= 0.45


def test_cut_at_a_byte(echo, proxy, connect):
    link = proxy(echo)
    connection = connect(link)
    seconds(connection, b"x" * 100)
    link.cut_after(received=7)
    connection.sendall(b"0123456789")
    with pytest.raises(ConnectionResetError):
        read(connection, 10)
    assert link.received == 107
    seconds(connect(link), b"another")


def test_freeze_loses_nothing(echo, proxy, connect):
    link = proxy(echo)
    connection = connect(link)
    seconds(connection, b"x")
    link.freeze()
    connection.sendall(b"late")
    connection.settimeout(0.3)
    with pytest.raises(TimeoutError):
        connection.recv(4)
    link.thaw()
    connection.settimeout(10)
    assert read(connection, 4) == b"late"


def test_down_and_up(echo, proxy, connect):
    link = proxy(echo)
    connection = connect(link)
    seconds(connection, b"x")
    link.down()
    with pytest.raises(ConnectionResetError):
        connection.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(link)
    link.up()
    seconds(connect(link), b"y")
    assert link.connections <= 2
    link.cut()
    assert link.connections == 0
