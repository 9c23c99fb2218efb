"""A small actor kernel: addresses with epochs, mailboxes, calls and streams, supervision, transports."""

from sgl_actors.actors.microkernel.actor import Actor, Context, MailboxSpec, Request
from sgl_actors.actors.microkernel.address import Address
from sgl_actors.actors.microkernel.swap import Snapshot
from sgl_actors.actors.microkernel.wire import Down, Fault, Message, Up

__all__ = [
    "Actor",
    "Address",
    "Context",
    "Down",
    "Fault",
    "MailboxSpec",
    "Message",
    "Request",
    "Snapshot",
    "Up",
]
