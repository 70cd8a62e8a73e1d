"""The disk as QEMU reads it: a server of the network block device protocol on a socket of this machine.

The protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md; names as there. Of it what QEMU's
client uses, and no more: the "fixed newstyle" handshake and simple replies.
"""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from errno import EIO, ENOSPC
from typing import TYPE_CHECKING, Self

from asikit.record.disk.room import DiskFullError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from asikit.record.disk.written import GuestDisk

__all__ = ["NbdServer"]

_GREETING = b"NBDMAGIC" + b"IHAVEOPT"
_FLAG_FIXED_NEWSTYLE, _FLAG_NO_ZEROES = 1, 2
_OPT_EXPORT_NAME, _OPT_ABORT, _OPT_LIST, _OPT_INFO, _OPT_GO = 1, 2, 3, 6, 7
_OPTION = struct.Struct(">8sII")
_MOST_OPTION_BYTES = 1 << 16
_REPLY_MAGIC = 0x3E889045565A9
_OPTION_REPLY = struct.Struct(">QIII")
_REP_ACK, _REP_SERVER, _REP_INFO, _REP_ERR_UNSUP = 1, 2, 3, 1 << 31 | 1
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
_FLAG_HAS_FLAGS, _FLAG_SEND_FLUSH = 1, 4
_EXPORT_FLAGS = _FLAG_HAS_FLAGS | _FLAG_SEND_FLUSH

_REQUEST = struct.Struct(">IHHQQI")
_REQUEST_MAGIC = 0x25609513
_CMD_READ, _CMD_WRITE, _CMD_DISC, _CMD_FLUSH = 0, 1, 2, 3
_REPLY = struct.Struct(">IIQ")
_SIMPLE_REPLY_MAGIC = 0x67446698
_EINVAL = 22
_MOST_BYTES = 32 << 20


class NbdServer:
    """Serves one disk in a thread: on a socket with a path, one client after the other, or to one client alone.

    A context manager.

    :ivar failure: What the user should know: the first time that the guest was told of a full disk. None: nothing.
    :ivar read_bytes: What the guest has read.
    :ivar written_bytes: What it has written.
    :ivar reads: Requests to read.
    """

    def __init__(self, disk: GuestDisk, path: Path | None = None) -> None:
        """Prepare.

        :param path: Where the socket is to be; None: nowhere, so that nothing is left behind and nobody else connects.
        """
        self.failure: str | None = None
        self.read_bytes = 0
        self.written_bytes = 0
        self.reads = 0
        self._disk = disk
        self._path = path
        self._sockets: list[socket.socket] = []
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="asi-disk", daemon=True)

    def __enter__(self) -> Self:
        """Begin to serve.

        :raises OSError: The socket cannot be made.
        """
        if self._path is None:
            self._sockets += socket.socketpair()
        else:
            self._sockets.append(socket.socket(socket.AF_UNIX))
            self._sockets[0].bind(str(self._path))
            self._sockets[0].listen(1)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, and remove the socket."""
        self._closing = True
        for each in self._sockets:
            with suppress(OSError):  # its other end has gone
                each.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for each in self._sockets:
            each.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    @property
    def client(self) -> int:
        """The file descriptor that QEMU inherits, where the socket has no path."""
        return self._sockets[1].fileno()

    @property
    def drive(self) -> str:
        """What follows QEMU's ``-drive``. Errors go to the guest, which QEMU by default stops when the disk is full."""
        if self._path is None:
            server = f"file.server.type=fd,file.server.str={self.client}"
        else:
            server = f"file.server.type=unix,file.server.path={str(self._path).replace(',', ',,')}"
        return f"file.driver=nbd,{server},format=raw,if=virtio,werror=report,rerror=report"

    def _serve(self) -> None:
        if self._path is None:
            self._serve_client(self._sockets[0])
            return
        while not self._closing:
            try:
                client, _ = self._sockets[0].accept()
            except OSError:  # it was shut down
                return
            with client:
                self._sockets.append(client)
                self._serve_client(client)
                self._sockets.remove(client)

    def _serve_client(self, client: socket.socket) -> None:
        with suppress(_GoneError, OSError):
            connection = _Connection(client)
            if _shake_hands(connection, self._disk.size):
                self._answer(connection)

    def _answer(self, connection: _Connection) -> None:
        """Answer requests until the client has had enough.

        :raises _GoneError: It went without a word.
        """
        while True:
            magic, _, command, handle, offset, length = _REQUEST.unpack(connection.receive(_REQUEST.size))
            if magic != _REQUEST_MAGIC or command == _CMD_DISC:
                return
            written = memoryview(connection.receive(length)) if command == _CMD_WRITE and length <= _MOST_BYTES else b""
            error, data = self._done(command, offset, length, written)
            connection.send(_REPLY.pack(_SIMPLE_REPLY_MAGIC, error, handle), data)

    def _done(self, command: int, offset: int, length: int, written: bytes | memoryview) -> tuple[int, bytes]:
        """Do what is asked; give the error, 0 if there is none, and what was read."""
        if command == _CMD_FLUSH:
            return 0, b""
        if command not in {_CMD_READ, _CMD_WRITE} or length > _MOST_BYTES or offset + length > self._disk.size:
            return _EINVAL, b""
        try:
            if command == _CMD_WRITE:
                self._disk.write(offset, written)
                self.written_bytes += length
                return 0, b""
            data = self._disk.read(offset, length)
        except DiskFullError as error:
            self.failure = self.failure or str(error)
            return EIO, b""
        except OSError as error:
            if command == _CMD_WRITE:
                self.failure = self.failure or f"cannot keep what the guest writes: {error.strerror}"
            return (ENOSPC if error.errno == ENOSPC else EIO), b""
        self.read_bytes += length
        self.reads += 1
        return 0, data


class _GoneError(Exception):
    """The client has gone."""


class _Connection:
    """A client's connection."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client

    def receive(self, length: int) -> bytearray:
        """Receive so many bytes.

        :raises _GoneError: They do not come.
        """
        data = bytearray(length)
        view = memoryview(data)
        while view:
            got = self._client.recv_into(view)
            if not got:
                raise _GoneError
            view = view[got:]
        return data

    def send(self, head: bytes, data: bytes = b"") -> None:
        """Send a head and what belongs to it."""
        sent = self._client.sendmsg((head, data))
        if sent < len(head) + len(data):
            self._client.sendall((head + data)[sent:])


def _shake_hands(connection: _Connection, size: int) -> bool:
    """Negotiate; tell whether the client wants the disk."""
    connection.send(_GREETING + struct.pack(">H", _FLAG_FIXED_NEWSTYLE | _FLAG_NO_ZEROES))
    (flags,) = struct.unpack(">I", connection.receive(4))
    while True:
        _, option, length = _OPTION.unpack(connection.receive(_OPTION.size))
        if length > _MOST_OPTION_BYTES:
            return False
        connection.receive(length)

        def reply(kind: int, data: bytes = b"", option: int = option) -> None:
            connection.send(_OPTION_REPLY.pack(_REPLY_MAGIC, option, kind, len(data)), data)

        if option == _OPT_EXPORT_NAME:
            padding = b"" if flags & _FLAG_NO_ZEROES else bytes(124)
            connection.send(struct.pack(">QH", size, _EXPORT_FLAGS) + padding)
            return True
        if option in {_OPT_INFO, _OPT_GO}:
            reply(_REP_INFO, struct.pack(">HQH", _INFO_EXPORT, size, _EXPORT_FLAGS))
            reply(_REP_INFO, struct.pack(">HIII", _INFO_BLOCK_SIZE, 1, 4096, _MOST_BYTES))
            reply(_REP_ACK)
            if option == _OPT_GO:
                return True
        elif option == _OPT_LIST:
            reply(_REP_SERVER, struct.pack(">I", 0))
            reply(_REP_ACK)
        elif option == _OPT_ABORT:
            reply(_REP_ACK)
            return False
        else:
            reply(_REP_ERR_UNSUP)
