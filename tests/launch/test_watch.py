"""A watch ends its process, with the reason, where another one has ended."""

import queue
import socket
import threading

import pytest

from r1jax.launch import watch as watch_module
from r1jax.launch.watch import EXIT_CODE, Watch


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
  monkeypatch.setattr(watch_module, '_OWN_ERROR_SECS', 0.3)
  monkeypatch.setattr(watch_module, '_LAST_SECS', 0.3)


@pytest.fixture
def run():
  """Three watches of one run, and the ends that each has been told."""
  ends = [queue.Queue() for _ in range(3)]
  watches = [
    Watch(i, 2.5, lambda code, text, q=q: q.put((code, text)))
    for i, q in enumerate(ends)
  ]
  port = watches[0].listen(0)
  accepting = threading.Thread(target=watches[0].accept, args=(3,))
  accepting.start()
  for watch in watches[1:]:
    watch.connect('localhost', port)
  accepting.join(10)
  yield watches, ends
  for watch in watches:
    watch._over = True
    for peer in watch._peers.values():
      peer.close()


def _told(ends, *processes) -> list[str]:
  found = [ends[i].get(timeout=15) for i in processes]
  assert all(code == EXIT_CODE for code, _ in found)
  return [text for _, text in found]


def test_strangers_and_a_port_in_use_do_not_matter():
  with socket.create_server(('', 0)) as taken:
    first = Watch(0, 5.0, lambda *_: None)
    port = first.listen(taken.getsockname()[1])
    assert port != taken.getsockname()[1]
  accepting = threading.Thread(target=first.accept, args=(2,))
  accepting.start()
  with socket.create_connection(('localhost', port)) as stranger:
    stranger.sendall(b'GET / HTTP/1.1\n')
    second = Watch(1, 5.0, lambda *_: None)
    second.connect('localhost', port)
    accepting.join(10)
  assert not accepting.is_alive() and list(first._peers) == [1]
  for watch in (second, first):
    watch.close()


def test_processes_that_fail_alike_end_by_their_own_errors(run):
  watches, ends = run
  for watch in (watches[2], watches[1], watches[0]):
    watch.close('config: seed')
  for q in ends:
    with pytest.raises(queue.Empty):
      q.get(timeout=1)


def test_a_process_that_waits_for_one_that_is_done_ends(run, monkeypatch):
  monkeypatch.setattr(watch_module, '_DONE_SECS', 0.5)
  watches, ends = run
  watches[1].close()
  for text in _told(ends, 0, 2):
    assert 'process 1 has ended: it is done, and this one is not' in text


def test_last_words_reach_every_process(run):
  watches, ends = run
  watches[2].close('data: no file x.jsonl')
  for text in _told(ends, 0, 1):
    assert text.startswith('process 2 has ended: data: no file x.jsonl; ')
  assert ends[2].empty()


@pytest.mark.parametrize('killed, others', [(1, (0, 2)), (0, (1, 2))])
def test_a_killed_process_is_noticed_at_once(run, killed, others):
  watches, ends = run
  watches[killed]._over = True  # It says nothing more.
  for peer in watches[killed]._peers.values():
    peer.shutdown(2)
  for text in _told(ends, *others):
    assert f'process {killed} has ended: ' in text


def test_a_stopped_process_is_noticed_by_its_silence(run):
  watches, ends = run
  watches[1]._over = True  # Its pings end, and its connection stays.
  for text in _told(ends, 0, 2):
    assert 'process 1 has ended: it has said nothing for' in text


def test_processes_that_are_done_end_nobody(run):
  watches, ends = run
  for watch in (watches[1], watches[2], watches[0]):
    watch.close()
  for watch in watches[1:]:
    for peer in watch._peers.values():
      peer.close()
  for q in ends:
    with pytest.raises(queue.Empty):
      q.get(timeout=0.3)
