"""Host policy alone: rows, pages, sharing, giving way. No device."""

from collections import Counter, deque

import numpy as np

from r1jax.rollout.block_pool import Pool
from r1jax.rollout.sampling import Sampling
from r1jax.rollout.scheduler import Completion, Request, Scheduler


def _request(prompt, new: int = 8, name='r') -> Completion:
  return Completion(
    Request(
      name=name,
      prompt=np.asarray(prompt, np.int32),
      key=np.zeros(2, np.uint32),
      sampling=Sampling(max_new_tokens=new, stop_ids=(1,)),
    )
  )


def _scheduler(**changes) -> Scheduler:
  return Scheduler(
    **dict(rows=4, parts=1, pages=20, places=8, page_tokens=4, chunk_tokens=4)
    | changes
  )


def _pages(row):
  return [page.number for page in row.pages]


def _draw(schedule: Scheduler, tokens: int = 4):
  """Every running row draws so many tokens, or what it has left."""
  schedule.reserve()
  for rows in schedule.running:
    for row in list(rows):
      count = min(tokens, row.completion.left)
      row.completion.tokens.extend([7] * count)
      schedule.wrote(row, count)
      if not row.completion.left:
        schedule.finish(row)


def test_a_group_shares_one_copy_of_its_prompt_and_one_reading():
  schedule = _scheduler()
  for _ in range(4):
    schedule.submit(_request(range(11)))
  jobs = schedule.place()
  assert len(jobs) == 1 and jobs[0].tokens.tolist() == list(range(10))
  rows = schedule.running[0]
  assert len({tuple(_pages(row)) for row in rows}) == 1
  assert [page.fill for page in rows[0].pages] == [4, 4, 2]
  _draw(schedule)
  # What a row draws goes to a page that it alone has, from its first place on.
  own = [_pages(row)[3:] for row in rows]
  assert len({number for pages in own for number in pages}) == 4
  assert all(row.next == 3 * 4 + 4 for row in rows)


def test_a_longer_prompt_reads_only_what_is_new_to_it():
  schedule = _scheduler()
  schedule.submit(_request(range(10)))  # Pages of 4, 4 and 1.
  schedule.submit(_request([*range(8), 90, 91, 92, 93, 94]))
  first, second = schedule.place()
  assert second.tokens.tolist() == [90, 91, 92, 93]
  assert second.before == first.pages[:2]
  # The pages that it looks at are read first.
  assert second.after is first and not second.ready
  first.done = len(first.tokens)
  assert second.ready


def test_a_prompt_is_found_again_until_its_pages_are_needed():
  schedule = _scheduler(pages=8)
  schedule.submit(_request(range(9), new=4))
  assert len(schedule.place()) == 1
  _draw(schedule)
  assert schedule.idle
  schedule.submit(_request(range(9), new=4))
  assert not schedule.place()  # Nobody held the pages; they were there.
  _draw(schedule)
  schedule.submit(_request(range(50, 71), new=4))  # Five pages, and one more.
  schedule.place()
  _draw(schedule)
  schedule.submit(_request(range(9), new=4))
  assert len(schedule.place()) == 1


def test_no_page_is_lost_or_held_twice():
  """A hundred requests of all lengths, and others that go on with what those
  have made, through a pool that is often full."""
  rng = np.random.default_rng(0)
  schedule = _scheduler(rows=5, pages=20, places=13)
  made = [
    _request(rng.integers(0, 3, rng.integers(1, 14)), int(rng.integers(1, 20)))
    for _ in range(100)
  ]
  coming, went_on = deque(made), 0
  for _ in range(1000):
    while coming and len(schedule.unfinished()) < 4:
      schedule.submit(coming.popleft())
    if schedule.idle:
      break
    for job in schedule.place():
      job.done = len(job.tokens)
      went_on += any(page.drawn for page in job.before)
    before = schedule.unfinished()
    _draw(schedule)
    for completion in before:
      said = completion.context
      if not completion.left and len(said) < 30:
        made.append(_request([*said, 1, 2], int(rng.integers(1, 12))))
        coming.appendleft(made[-1])
    rows = schedule.running[0]
    own = [n for row in rows for n in _pages(row)[row.own :]]
    shared = {n for row in rows for n in _pages(row)[: row.own]}
    assert len(own) == len(set(own)) and not shared & set(own)
    pool = schedule._pools[0]
    assert pool.available + len(own) + len(shared) == 19
    assert 0 not in shared | set(own)
    assert max(map(len, map(_pages, rows)), default=0) <= 13
    fills: dict[bytes, Counter] = {}
    for page in pool._found.values():
      fills.setdefault(page.before, Counter())[page.fill] += 1
    assert fills == pool._fills
  assert schedule.idle and schedule.preempted > 0 and went_on > 5
  assert all(len(c.tokens) == c.request.sampling.max_new_tokens for c in made)
  assert schedule._pools[0].available == 19


def test_the_youngest_gives_way_and_goes_on_with_what_it_made():
  schedule = _scheduler(rows=2, pages=6)
  old, young = _request(range(4), 12), _request(range(10, 14), 12)
  schedule.submit(old)
  schedule.submit(young)
  schedule.place()
  while schedule.preempted == 0:
    _draw(schedule)
  assert schedule.unfinished() == [old, young]
  assert 0 < len(young.tokens) < 12
  while old.left:
    _draw(schedule)
  (job,) = schedule.place()
  # Read again: the prompt and all it made, but for the last token.
  held = np.concatenate([page_tokens for page_tokens in [young.context[:-1]]])
  found = sum(page.fill for page in job.before)
  assert found + len(job.tokens) == len(held)
  assert job.tokens.tolist() == held[found:].tolist()


def test_the_next_turn_reads_only_what_the_last_one_did_not_hold():
  """What was drawn is found as well, in pages that are half full, too."""
  schedule = _scheduler()
  first = _request(range(10), new=7)  # 9 in pages of 4, 4, 1; drawn, 4 and 3.
  schedule.submit(first)
  schedule.place()
  while not schedule.idle:
    _draw(schedule)
  second = _request([*first.context, 90, 91, 92])
  schedule.submit(second)
  (job,) = schedule.place()
  # The last token drawn was never fed.
  assert job.tokens.tolist() == [7, 90, 91]
  assert [page.fill for page in job.before] == [4, 4, 1, 4, 3]
  (row,) = schedule.running[0]
  assert row.next == 6 * 4 and len(row.pages) == 6


def test_the_fullest_page_is_found_and_the_last_that_was_published():
  pool, tokens = Pool(9), np.arange(4)
  first, half, second = pool.take(), pool.take(), pool.take()
  pool.publish(first, b'', tokens)
  pool.publish(half, b'', tokens[:2])
  assert pool.match(np.arange(6)) == [first]
  assert pool.match(tokens[:3]) == [half]
  pool.publish(second, b'', tokens)  # Another row's, while the first is held.
  assert pool.match(tokens) == [second]
  for page in (first, half, second):
    pool.release([page])
  assert pool.available == 8
  for _ in range(8):
    pool.take()
  assert not pool.match(tokens) and not pool._fills


def test_half_full_pages_are_left_where_a_row_has_no_room_for_them():
  schedule = _scheduler(places=6)  # Room for 20 tokens.
  first = _request(range(10), new=7)
  schedule.submit(first)
  schedule.place()
  while not schedule.idle:
    _draw(schedule)
  schedule.submit(_request([*first.context, 90], new=4))
  (job,) = schedule.place()
  assert [page.fill for page in job.before] == [4, 4, 1, 4]
  assert len(schedule.running[0][0].pages) + 1 <= 6


def test_a_half_full_page_is_not_shared_where_it_costs_one_more():
  schedule = _scheduler()
  schedule.submit(_request(range(7)))  # Pages of 4 and 2.
  schedule.submit(_request(range(13)))
  schedule.submit(_request(range(12)))
  found = [
    [page.fill for page in row.pages]
    for _ in [schedule.place()]
    for row in schedule.running[0]
  ]
  # Twelve tokens fill three pages; eleven need as many either way.
  assert found == [[4, 2], [4, 4, 4], [4, 4, 3]]


def test_what_a_stop_string_cut_off_is_not_found():
  schedule = _scheduler()
  first = _request(range(5), new=9)
  schedule.submit(first)
  schedule.place()
  _draw(schedule)
  del first.tokens[2:]
  schedule.finish(schedule.running[0][0])
  # Four were written, of which two are left: they follow nothing else either.
  for prompt in ([*range(5), *first.tokens, 8], [0, 1, 2, 3, 2, 3, 4, 7, 8]):
    schedule.submit(_request(prompt))
    (job,) = schedule.place()
    assert [page.fill for page in job.before] == [4]


def test_a_prompt_is_forgotten_from_its_end():
  schedule = _scheduler(pages=12, places=10)
  schedule.submit(_request(range(33), new=1))
  schedule.place()
  _draw(schedule)  # Eight pages that nobody holds, one that was drawn.
  schedule.submit(_request(range(50, 71), new=1))  # Five pages, and one more.
  schedule.place()
  _draw(schedule)
  schedule.submit(_request(range(33), new=1))
  (job,) = schedule.place()
  assert job.tokens.tolist() == list(range(20, 32))


def test_what_was_drawn_is_forgotten_before_any_prompt():
  schedule = _scheduler(pages=12)
  for prompt in (range(9), range(20, 29), range(50, 75)):
    schedule.submit(_request(prompt, new=1))  # Two pages, two, six; each one
    schedule.place()  # more that was drawn.
    _draw(schedule)
  schedule.submit(_request(range(9)))
  schedule.submit(_request(range(20, 29)))
  assert not schedule.place()


def test_of_what_was_drawn_the_oldest_is_forgotten_first():
  """A conversation is not forgotten for completions that nobody goes on
  with."""
  schedule = _scheduler(pages=12)

  def done(prompt, new: int):
    completion = _request(prompt, new=new)
    schedule.submit(completion)
    jobs = schedule.place()
    while not schedule.idle:
      _draw(schedule)
    return completion, sum(len(job.tokens) for job in jobs)

  done([20] * 5, 4)  # Two pages each: four tokens read, and four drawn.
  done([30] * 5, 4)
  turn, _ = done([40] * 5, 4)
  done([50] * 13, 8)  # Five pages; two old completions go for them.
  _, read = done([*turn.context, 41], 1)
  assert read == 1


def test_a_shared_beginning_does_not_crowd_one_part():
  """Prompts in one template go to all parts; a group stays together, up to
  an even share."""
  schedule = _scheduler(rows=8, parts=4, pages=99)
  for n in range(8):
    schedule.submit(_request([1, 2, 3, 4, 50 + n, 9]))
  schedule.place()
  assert [len(rows) for rows in schedule.running] == [2] * 4
  schedule = _scheduler(rows=8, parts=4, pages=99)
  for n in range(8):
    schedule.submit(_request([1, 2, 3, 4, 50 + n // 4, 9]))
  assert len(schedule.place()) == 4
  assert [len(rows) for rows in schedule.running] == [2] * 4


def test_a_request_waits_where_the_pages_it_would_share_are_the_last():
  """Pages that nobody holds are either shared or taken, not both."""
  schedule = _scheduler(pages=9)
  schedule.submit(_request(range(17), new=4))  # Four pages, one for drawing.
  schedule.place()
  _draw(schedule)
  schedule.submit(_request([*range(60, 69)], new=4))  # Two, and one.
  schedule.place()
  schedule.submit(_request([*range(17), *range(30, 37)], new=4))
  # Of six pages four are shared, two are read, one is drawn to, one is the
  # other row's: more than the five that are there.
  assert not schedule.place() and len(schedule.unfinished()) == 2
  _draw(schedule)
  (job,) = schedule.place()
  assert len(job.before) == 4


def test_a_row_that_decodes_keeps_a_page_to_grow():
  schedule = _scheduler(pages=7)
  schedule.submit(_request(range(9), new=12))
  schedule.place()
  _draw(schedule)  # Two pages read, one drawn to; three are left.
  schedule.submit(_request(range(20, 29), new=4))
  assert not schedule.place()


def test_parts_of_a_mesh_have_pools_of_their_own():
  schedule = _scheduler(rows=2, parts=2, pages=9)
  for name in range(4):
    schedule.submit(_request([name // 2] * 9, name=name))
  jobs = schedule.place()
  # A prompt's second sample goes where its pages are.
  assert [
    [row.completion.request.name for row in rows] for rows in schedule.running
  ] == [[0, 1], [2, 3]]
  assert [job.part for job in jobs] == [0, 1]
