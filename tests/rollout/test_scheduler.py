"""Host policy alone: seqs, pages, sharing, giving way. No device."""

from collections import Counter, deque

import numpy as np

from r1jax.rollout.block_pool import BlockPool
from r1jax.rollout.sampling import SamplingParams
from r1jax.rollout.scheduler import Completion, Request, Scheduler


def _request(prompt, new: int = 8, name='r') -> Completion:
  return Completion(
    Request(
      name=name,
      prompt=np.asarray(prompt, np.int32),
      key=np.zeros(2, np.uint32),
      sampling_params=SamplingParams(max_new_tokens=new, stop_token_ids=(1,)),
    )
  )


def _scheduler(**changes) -> Scheduler:
  return Scheduler(
    **dict(
      max_num_seqs=4,
      num_shards=1,
      num_blocks=20,
      max_blocks_per_seq=8,
      block_size=4,
      tokens_per_call=4,
    )
    | changes
  )


def _block_ids(seq):
  return [block.block_id for block in seq.blocks]


def _decode(scheduler: Scheduler, tokens: int = 4):
  """Every running seq draws so many tokens, or what it has left."""
  scheduler.reserve()
  for seqs in scheduler.running:
    for seq in list(seqs):
      count = min(tokens, seq.completion.remaining_tokens)
      seq.completion.tokens.extend([7] * count)
      scheduler.record_tokens(seq, count)
      if not seq.completion.remaining_tokens:
        scheduler.finish(seq)


def test_a_group_shares_one_copy_of_its_prompt_and_one_reading():
  scheduler = _scheduler()
  for _ in range(4):
    scheduler.submit(_request(range(11)))
  jobs = scheduler.admit()
  assert len(jobs) == 1 and jobs[0].tokens.tolist() == list(range(10))
  seqs = scheduler.running[0]
  assert len({tuple(_block_ids(seq)) for seq in seqs}) == 1
  assert [block.num_tokens for block in seqs[0].blocks] == [4, 4, 2]
  _decode(scheduler)
  # What a seq draws goes to a page that it alone has, from its first place on.
  own = [_block_ids(seq)[3:] for seq in seqs]
  assert len({number for pages in own for number in pages}) == 4
  assert all(seq.next_slot == 3 * 4 + 4 for seq in seqs)


def test_a_longer_prompt_reads_only_what_is_new_to_it():
  scheduler = _scheduler()
  scheduler.submit(_request(range(10)))  # Pages of 4, 4 and 1.
  scheduler.submit(_request([*range(8), 90, 91, 92, 93, 94]))
  first, second = scheduler.admit()
  assert second.tokens.tolist() == [90, 91, 92, 93]
  assert second.prefix_blocks == first.blocks[:2]
  # The pages that it looks at are read first.
  assert second.depends_on is first and not second.ready
  first.num_computed = len(first.tokens)
  assert second.ready


def test_a_prompt_is_found_again_until_its_pages_are_needed():
  scheduler = _scheduler(num_blocks=8)
  scheduler.submit(_request(range(9), new=4))
  assert len(scheduler.admit()) == 1
  _decode(scheduler)
  assert scheduler.idle
  scheduler.submit(_request(range(9), new=4))
  assert not scheduler.admit()  # Nobody held the pages; they were there.
  _decode(scheduler)
  scheduler.submit(_request(range(50, 71), new=4))  # Five pages, and one more.
  scheduler.admit()
  _decode(scheduler)
  scheduler.submit(_request(range(9), new=4))
  assert len(scheduler.admit()) == 1


def test_no_page_is_lost_or_held_twice():
  """A hundred requests of all lengths, and others that go on with what those
  have made, through a pool that is often full."""
  rng = np.random.default_rng(0)
  scheduler = _scheduler(max_num_seqs=5, num_blocks=20, max_blocks_per_seq=13)
  made = [
    _request(rng.integers(0, 3, rng.integers(1, 14)), int(rng.integers(1, 20)))
    for _ in range(100)
  ]
  coming, went_on = deque(made), 0
  for _ in range(1000):
    while coming and len(scheduler.unfinished()) < 4:
      scheduler.submit(coming.popleft())
    if scheduler.idle:
      break
    for job in scheduler.admit():
      job.num_computed = len(job.tokens)
      went_on += any(block.generated for block in job.prefix_blocks)
    before = scheduler.unfinished()
    _decode(scheduler)
    for completion in before:
      said = completion.all_tokens
      if not completion.remaining_tokens and len(said) < 30:
        made.append(_request([*said, 1, 2], int(rng.integers(1, 12))))
        coming.appendleft(made[-1])
    seqs = scheduler.running[0]
    own = [
      n for seq in seqs for n in _block_ids(seq)[seq.num_prefilled_blocks :]
    ]
    shared = {
      n for seq in seqs for n in _block_ids(seq)[: seq.num_prefilled_blocks]
    }
    assert len(own) == len(set(own)) and not shared & set(own)
    pool = scheduler._pools[0]
    assert pool.num_available + len(own) + len(shared) == 19
    assert 0 not in shared | set(own)
    assert max(map(len, map(_block_ids, seqs)), default=0) <= 13
    fills: dict[bytes, Counter] = {}
    for block in pool._cached.values():
      fills.setdefault(block.parent_hash, Counter())[block.num_tokens] += 1
    assert fills == pool._child_sizes
  assert scheduler.idle and scheduler.num_preemptions > 0 and went_on > 5
  assert all(
    len(c.tokens) == c.request.sampling_params.max_new_tokens for c in made
  )
  assert scheduler._pools[0].num_available == 19


def test_the_youngest_gives_way_and_goes_on_with_what_it_made():
  scheduler = _scheduler(max_num_seqs=2, num_blocks=6)
  old, young = _request(range(4), 12), _request(range(10, 14), 12)
  scheduler.submit(old)
  scheduler.submit(young)
  scheduler.admit()
  while scheduler.num_preemptions == 0:
    _decode(scheduler)
  assert scheduler.unfinished() == [old, young]
  assert 0 < len(young.tokens) < 12
  while old.remaining_tokens:
    _decode(scheduler)
  (job,) = scheduler.admit()
  # Read again: the prompt and all it made, but for the last token.
  held = young.all_tokens[:-1]
  found = sum(block.num_tokens for block in job.prefix_blocks)
  assert found + len(job.tokens) == len(held)
  assert job.tokens.tolist() == held[found:].tolist()


def test_the_next_turn_reads_only_what_the_last_one_did_not_hold():
  """What was drawn is found as well, in pages that are half full, too."""
  scheduler = _scheduler()
  first = _request(range(10), new=7)  # 9 in pages of 4, 4, 1; drawn, 4 and 3.
  scheduler.submit(first)
  scheduler.admit()
  while not scheduler.idle:
    _decode(scheduler)
  second = _request([*first.all_tokens, 90, 91, 92])
  scheduler.submit(second)
  (job,) = scheduler.admit()
  # The last token drawn was never fed.
  assert job.tokens.tolist() == [7, 90, 91]
  assert [block.num_tokens for block in job.prefix_blocks] == [4, 4, 1, 4, 3]
  (seq,) = scheduler.running[0]
  assert seq.next_slot == 6 * 4 and len(seq.blocks) == 6


def test_the_fullest_page_is_found_and_the_last_that_was_published():
  pool, tokens = BlockPool(9), np.arange(4)
  first, half, second = pool.allocate(), pool.allocate(), pool.allocate()
  pool.cache(first, b'', tokens)
  pool.cache(half, b'', tokens[:2])
  assert pool.match_prefix(np.arange(6)) == [first]
  assert pool.match_prefix(tokens[:3]) == [half]
  pool.cache(second, b'', tokens)  # Another seq's, while the first is held.
  assert pool.match_prefix(tokens) == [second]
  for block in (first, half, second):
    pool.release([block])
  assert pool.num_available == 8
  for _ in range(8):
    pool.allocate()
  assert not pool.match_prefix(tokens) and not pool._child_sizes


def test_half_full_pages_are_left_where_a_row_has_no_room_for_them():
  scheduler = _scheduler(max_blocks_per_seq=6)  # Room for 20 tokens.
  first = _request(range(10), new=7)
  scheduler.submit(first)
  scheduler.admit()
  while not scheduler.idle:
    _decode(scheduler)
  scheduler.submit(_request([*first.all_tokens, 90], new=4))
  (job,) = scheduler.admit()
  assert [block.num_tokens for block in job.prefix_blocks] == [4, 4, 1, 4]
  assert len(scheduler.running[0][0].blocks) + 1 <= 6


def test_a_half_full_page_is_not_shared_where_it_costs_one_more():
  scheduler = _scheduler()
  scheduler.submit(_request(range(7)))  # Pages of 4 and 2.
  scheduler.submit(_request(range(13)))
  scheduler.submit(_request(range(12)))
  found = [
    [block.num_tokens for block in seq.blocks]
    for _ in [scheduler.admit()]
    for seq in scheduler.running[0]
  ]
  # Twelve tokens fill three pages; eleven need as many either way.
  assert found == [[4, 2], [4, 4, 4], [4, 4, 3]]


def test_what_a_stop_string_cut_off_is_not_found():
  scheduler = _scheduler()
  first = _request(range(5), new=9)
  scheduler.submit(first)
  scheduler.admit()
  _decode(scheduler)
  del first.tokens[2:]
  scheduler.finish(scheduler.running[0][0])
  # Four were written, of which two are left: they follow nothing else either.
  for prompt in ([*range(5), *first.tokens, 8], [0, 1, 2, 3, 2, 3, 4, 7, 8]):
    scheduler.submit(_request(prompt))
    (job,) = scheduler.admit()
    assert [block.num_tokens for block in job.prefix_blocks] == [4]


def test_a_prompt_is_forgotten_from_its_end():
  scheduler = _scheduler(num_blocks=12, max_blocks_per_seq=10)
  scheduler.submit(_request(range(33), new=1))
  scheduler.admit()
  _decode(scheduler)  # Eight pages that nobody holds, one that was drawn.
  scheduler.submit(_request(range(50, 71), new=1))  # Five pages, and one more.
  scheduler.admit()
  _decode(scheduler)
  scheduler.submit(_request(range(33), new=1))
  (job,) = scheduler.admit()
  assert job.tokens.tolist() == list(range(20, 32))


def test_what_was_drawn_is_forgotten_before_any_prompt():
  scheduler = _scheduler(num_blocks=12)
  for prompt in (range(9), range(20, 29), range(50, 75)):
    scheduler.submit(_request(prompt, new=1))  # Two pages, two, six; each one
    scheduler.admit()  # more that was drawn.
    _decode(scheduler)
  scheduler.submit(_request(range(9)))
  scheduler.submit(_request(range(20, 29)))
  assert not scheduler.admit()


def test_of_what_was_drawn_the_oldest_is_forgotten_first():
  """A conversation is not forgotten for completions that nobody goes on
  with."""
  scheduler = _scheduler(num_blocks=12)

  def done(prompt, new: int):
    completion = _request(prompt, new=new)
    scheduler.submit(completion)
    jobs = scheduler.admit()
    while not scheduler.idle:
      _decode(scheduler)
    return completion, sum(len(job.tokens) for job in jobs)

  done([20] * 5, 4)  # Two pages each: four tokens read, and four drawn.
  done([30] * 5, 4)
  turn, _ = done([40] * 5, 4)
  done([50] * 13, 8)  # Five pages; two old completions go for them.
  _, read = done([*turn.all_tokens, 41], 1)
  assert read == 1


def test_a_shared_beginning_does_not_crowd_one_part():
  """Prompts in one template go to all parts; a group stays together, up to
  an even share."""
  scheduler = _scheduler(max_num_seqs=8, num_shards=4, num_blocks=99)
  for n in range(8):
    scheduler.submit(_request([1, 2, 3, 4, 50 + n, 9]))
  scheduler.admit()
  assert [len(seqs) for seqs in scheduler.running] == [2] * 4
  scheduler = _scheduler(max_num_seqs=8, num_shards=4, num_blocks=99)
  for n in range(8):
    scheduler.submit(_request([1, 2, 3, 4, 50 + n // 4, 9]))
  assert len(scheduler.admit()) == 4
  assert [len(seqs) for seqs in scheduler.running] == [2] * 4


def test_a_request_waits_where_the_pages_it_would_share_are_the_last():
  """Pages that nobody holds are either shared or taken, not both."""
  scheduler = _scheduler(num_blocks=9)
  scheduler.submit(_request(range(17), new=4))  # Four pages, one for drawing.
  scheduler.admit()
  _decode(scheduler)
  scheduler.submit(_request([*range(60, 69)], new=4))  # Two, and one.
  scheduler.admit()
  scheduler.submit(_request([*range(17), *range(30, 37)], new=4))
  # Of six pages four are shared, two are read, one is drawn to, one is the
  # other seq's: more than the five that are there.
  assert not scheduler.admit() and len(scheduler.unfinished()) == 2
  _decode(scheduler)
  (job,) = scheduler.admit()
  assert len(job.prefix_blocks) == 4


def test_a_row_that_decodes_keeps_a_page_to_grow():
  scheduler = _scheduler(num_blocks=7)
  scheduler.submit(_request(range(9), new=12))
  scheduler.admit()
  _decode(scheduler)  # Two pages read, one drawn to; three are left.
  scheduler.submit(_request(range(20, 29), new=4))
  assert not scheduler.admit()


def test_parts_of_a_mesh_have_pools_of_their_own():
  scheduler = _scheduler(max_num_seqs=2, num_shards=2, num_blocks=9)
  for name in range(4):
    scheduler.submit(_request([name // 2] * 9, name=name))
  jobs = scheduler.admit()
  # A prompt's second sample goes where its pages are.
  assert [
    [seq.completion.request.name for seq in seqs] for seqs in scheduler.running
  ] == [[0, 1], [2, 3]]
  assert [job.shard for job in jobs] == [0, 1]
