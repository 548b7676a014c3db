"""The exchange of activations between the pools: one contract, several backends.

base.py            the contract: ports, tickets, replies, deadlines, what all members agree on
opening.py         opens an exchange of any backend for one membership; a new backend goes here
loopback.py        all instances in one process, tensors handed on by reference
lockstep/          who has announced, dispatched and replied; the same for every backend
  control_block    one line of 64-bit words per instance, written by that instance only
  participant      waiting with a deadline, being woken, leaving
  steps            the state machine of an attention instance
  batches          the state machine of an expert instance
  ports            both ends over a shared control block, with a store for the tensors
  wakeup           eventfd between processes, event between threads
  reply_metadata   digests compared, and read from a device once per step
host_memory/       memory that the instances of one host share
  shared_memory    one region and control block for all: transport shm
  region           where rows lie in that region, and why one buffer of each kind is enough
  handshake        descriptors over authenticated abstract unix sockets
  host_peers       messages between pairs, read where they were written: beside a network
  connecting       how pairs get hold of each other's memory
  waiter           several threads that wait at one wake-up
network/           processes of any hosts: transport gloo
  exchange         one instance's end, and how it is opened
  ports            both ends over messages
  endpoint         control block, broadcast and executor of one instance, and its end
  control_broadcast  copies of the control block kept up to date
  executor         carries out a program; message_buffers, receive_slots, row_ops, arrivals serve it
  programs         the programs of one instance, kept by plan and batch
  plan_selection   which exchange plan a step has
  channel          the contract of point-to-point messages; a new network goes beside `gloo`
  port_filter      closes gloo's listening port once all peers are connected
  rendezvous       how processes find each other
exchange_plans/    which rows travel in which messages, as index arithmetic without torch
"""

from janus_moe.transport.base import (
    AttentionPort,
    Combined,
    Exchange,
    ExchangeLayout,
    ExpertPort,
    ReplyMetadata,
    Ticket,
    WaitRule,
    Work,
    spin_budget_us,
)
from janus_moe.transport.lockstep.reply_metadata import read_metadata
from janus_moe.transport.opening import open_exchange

__all__ = [
    "AttentionPort",
    "Combined",
    "Exchange",
    "ExchangeLayout",
    "ExpertPort",
    "ReplyMetadata",
    "Ticket",
    "WaitRule",
    "Work",
    "open_exchange",
    "read_metadata",
    "spin_budget_us",
]
