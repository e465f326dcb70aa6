"""The verifiable instructions of IFEval: each with responses that do and do not."""

import json

import pytest

from r1jax import registry
from r1jax.data import datasets, splits
from r1jax.data.text.response_formats import ResponseParser
from r1jax.errors import UserError
from r1jax.graders import (
  dispatch,
  ifeval_grader,
  instructions,
  sentences,
  text_graders,
)
from r1jax.graders.instructions import Followed
from r1jax.stages.build import prompts

# Instruction, arguments, responses that follow it, and responses that do not.
_CASES = [
  (
    'keywords:existence',
    {'keywords': ['moon', 'tide']},
    ['The Moon moves the tides.'],
    ['The moon alone.', 'mo on tide'],
  ),
  (
    'keywords:frequency',
    {'keyword': ' sun', 'frequency': 2, 'relation': 'at least'},
    ['sun, Sunday', 'SUN SUN SUN'],
    ['one sun'],
  ),
  (
    'keywords:frequency',
    {'keyword': 'sun', 'frequency': 2, 'relation': 'less than'},
    ['one sun', 'none'],
    ['sun and sun'],
  ),
  (
    'keywords:forbidden_words',
    {'forbidden_words': ['sun', 'red']},
    ['Sunday and hundred'],
    ['The sun.', 'RED!'],
  ),
  (
    'keywords:letter_frequency',
    {'letter': 'Q', 'let_frequency': 2, 'let_relation': 'at least'},
    ['Quick quiz'],
    ['Quick'],
  ),
  (
    'keywords:letter_frequency',
    {'letter': '!', 'let_frequency': 2, 'let_relation': 'less than'},
    ['Oh!'],
    ['Oh! No!'],
  ),
  (
    'language:response_language',
    {'language': 'de'},
    ['Der Hund schläft heute unter dem alten Tisch in der Küche.', '1 2 3'],
    ['The dog sleeps under the old table in the kitchen today.'],
  ),
  (
    'length_constraints:number_sentences',
    {'num_sentences': 3, 'relation': 'less than'},
    ['One. Two!', 'Dr. Lee and Mr. Kim met at 3.5 km from J. Doe. It rained.'],
    ['One. Two! Three?', 'He left. "Why?" she asked. Nobody knew.'],
  ),
  (
    'length_constraints:number_paragraphs',
    {'num_paragraphs': 2},
    ['one\n***\ntwo', '***\none *** two\n***'],
    ['one', 'one\n\ntwo', 'a *** *** b', 'a***b***c'],
  ),
  (
    'length_constraints:number_words',
    {'num_words': 4, 'relation': 'at least'},
    ['one two three four', "I don't know"],
    ['one two three'],
  ),
  (
    'length_constraints:nth_paragraph_first_word',
    {'num_paragraphs': 2, 'nth_paragraph': 2, 'first_word': 'Then'},
    ['First.\n\nthen, it rained.', 'First.\n\n"Then" it rained.'],
    ['First.\nThen it.', 'First.\n\nIt rained.', 'a\n\nthen\n\nc', 'then'],
  ),
  (
    'detectable_content:number_placeholders',
    {'num_placeholders': 2},
    ['[name] of [town]'],
    ['[name] of town', '[a\nb] [c]'],
  ),
  (
    'detectable_content:postscript',
    {'postscript_marker': 'P.S.'},
    ['Bye.\nP.S. More', 'p. s. more'],
    ['Bye. PS more', 'P.P.S more'],
  ),
  (
    'detectable_content:postscript',
    {'postscript_marker': 'P.P.S'},
    ['Bye.\nP.P.S more', 'p. p. s'],
    ['Bye.\nP.S. more'],
  ),
  (
    'detectable_format:number_bullet_lists',
    {'num_bullets': 2},
    ['* a\n* b', 'x\n  - a\n\n* b\n** bold **'],
    ['* a', '* a\n* b\n- c'],
  ),
  (
    'detectable_format:constrained_response',
    {},
    ['My answer is no.', 'Well. My answer is maybe. So.'],
    ['No.', 'my answer is no.'],
  ),
  (
    'detectable_format:number_highlighted_sections',
    {'num_highlights': 2},
    ['*one* and *two*', '**one** and *two*'],
    ['*one* and two', '**\n**', '* a\n* b'],
  ),
  (
    'detectable_format:multiple_sections',
    {'section_spliter': 'SECTION', 'num_sections': 2},
    ['SECTION 1\na\nSECTION 2\nb', 'SECTION1 SECTION2'],
    ['SECTION 1', 'Section 1 Section 2'],
  ),
  (
    'detectable_format:json_format',
    {},
    ['{"a": [1, 2]}', '```json\n{"a": 1}\n```', '```\n[]\n```'],
    ['{a: 1}', 'Here: {"a": 1}', '[' * 5000],
  ),
  ('detectable_format:title', {}, ['<<poem>>\nx'], ['<poem>', '<< >>']),
  (
    'combination:two_responses',
    {},
    ['one ****** two', '******\none\n******\ntwo\n******'],
    ['one ****** one', 'one', 'a ****** b ****** c', 'a ****** ****** b'],
  ),
  (
    'combination:repeat_prompt',
    {'prompt_to_repeat': 'Write a poem. '},
    [' write a poem. Roses'],
    ['Sure! Write a poem. Roses'],
  ),
  (
    'startend:end_checker',
    {'end_phrase': 'That is all.'},
    ['x. that is all.', '"x. That is all."\n'],
    ['That is all. Really.'],
  ),
  ('startend:quotation', {}, [' "all of it" '], ['"', '“all”', 'a "b"']),
  (
    'change_case:capital_word_frequency',
    {'capital_frequency': 2, 'capital_relation': 'at least'},
    ['I SAID no', 'R&D', 'NASA and U.S. law'],
    ['I said No', 'NASA'],
  ),
  (
    'change_case:english_capital',
    {},
    ['THE DOG SLEEPS UNDER THE TABLE TODAY.'],
    ['The dog sleeps.', 'DER HUND SCHLÄFT HEUTE UNTER DEM ALTEN TISCH.'],
  ),
  (
    'change_case:english_lowercase',
    {},
    ['the dog sleeps under the table today.'],
    ['The dog sleeps.', 'der hund schläft heute unter dem alten tisch.'],
  ),
  ('punctuation:no_comma', {}, ['No commas here.'], ['Well, one.']),
]


def _gold(*given) -> str:
  names, kwargs = zip(*given)
  return json.dumps({'instruction_id_list': names, 'kwargs': kwargs})


@pytest.mark.parametrize('name,arguments,right,wrong', _CASES)
def test_each_instruction(name, arguments, right, wrong):
  gold = _gold((name, arguments))
  assert instructions.gold_problem(gold) == ''
  for texts, follows in ((right, True), (wrong, False)):
    for text in texts:
      assert instructions.followed(text, gold).strict == (follows,), text
  assert instructions.followed(' \n', gold) == Followed((False,), (False,))


def test_all_25_instructions_have_cases():
  assert {case[0] for case in _CASES} == set(instructions.INSTRUCTIONS)
  assert len(instructions.INSTRUCTIONS) == 25


@pytest.mark.parametrize(
  'text',
  [
    'Sure, here it is:\n"quoted"',
    '"quoted"\nAnything else?',
    'Sure:\n"quoted"\nAnything else?',
    '*"quoted"*',
    'Sure:\n**"quoted"**\nBye',
  ],
)
def test_loose_checks_leave_out_lines_and_asterisks(text):
  gold = _gold(('startend:quotation', {}))
  assert instructions.followed(text, gold) == Followed((False,), (True,))


def test_the_loosest_variant_is_chosen_for_each_instruction():
  gold = _gold(('startend:quotation', {}), ('punctuation:no_comma', {}))
  text = 'Here, sir:\n"quoted"'
  assert instructions.followed(text, gold) == Followed(
    (False, False), (True, True)
  )


def test_accuracies_of_prompts_and_instructions():
  checked = [
    Followed((True, False), (True, True)),
    Followed((True,), (True,)),
    Followed((False,), (False,)),
  ]
  assert instructions.accuracies(checked) == {
    'prompt_strict': 1 / 3,
    'instruction_strict': 2 / 4,
    'prompt_loose': 2 / 3,
    'instruction_loose': 3 / 4,
  }


@pytest.mark.parametrize(
  'text,count',
  [
    ('', 0),
    ('no end', 1),
    ('**One.** Two', 2),
    ('One **two.**', 2),  # As Punkt counts.
    ('One. Two. Three', 3),
    ('What?! Yes... no. Well... So be it.', 4),
    ('It is 3.14 or 2. Then 5.', 2),
    ('See Dr. Who, Jr. at 5 p.m. Nobody else was there.', 1),
    ('It was plan B. She left with J. Smith.', 2),
    ('It opens at 5 p.m. The doors are blue.', 2),
    ('"Stop!" he said. (He did not.) Then left.', 4),
  ],
)
def test_sentences_end_where_a_reader_ends_them(text, count):
  assert sentences.num_sentences(text) == count


def test_words_are_split_as_in_the_penn_treebank():
  text = "DON'T stop, R&D: (A) JOHN'S 1,000 cannot. Yes."
  expected = (
    "DO N'T stop , R & D : ( A ) JOHN 'S 1,000 can not . Yes ."
  ).split()
  assert sentences.words(text) == expected


def test_the_grader_takes_the_response_behind_the_reasoning():
  gold = _gold(('punctuation:no_comma', {}), ('startend:quotation', {}))
  parser = ResponseParser(registry.response_format.get('boxed'))
  parsed = parser.parse('<think>Well, hm.</think>\n"No box at all"')
  text = dispatch.graded_text(parsed, 'ifeval')
  items = [
    (text, gold, 'ifeval'),
    ('"One, two"', gold, 'ifeval'),
    (None, gold, 'ifeval'),
    ('x' * 300_000, gold, 'ifeval'),
  ]
  try:
    assert dispatch.verdicts(items) == [
      'correct',
      'wrong',
      'unparsable',
      'refused',
    ]
    (checked,) = ifeval_grader.check([('"One, two"', gold)])
    assert checked == Followed((False, True), (False, True))
  finally:
    ifeval_grader.shutdown()
  assert not dispatch.compares_answers('ifeval', gold)


@pytest.mark.parametrize(
  'given,message',
  [
    ([('keywords:rhyme', {})], 'none of the 25'),
    ([('keywords:existence', {})], r"takes \['keywords'\]"),
    ([('startend:quotation', {'x': 1})], r"arguments \['x'\]"),
    (
      [('length_constraints:number_paragraphs', {'num_paragraphs': '2'})],
      "num_paragraphs = '2', no int",
    ),
    (
      [
        (
          'length_constraints:number_words',
          {'num_words': 2, 'relation': 'about'},
        )
      ],
      'not one of',
    ),
  ],
)
def test_instructions_that_cannot_be_checked_are_refused_before_a_run(
  tmp_path, given, message
):
  names, kwargs = zip(*given)
  path = tmp_path / 'a.jsonl'
  row = {'key': 1, 'prompt': 'Write.', 'instruction_id_list': names}
  path.write_text(json.dumps({**row, 'kwargs': kwargs}))
  rows = datasets.read(
    registry.dataset.get('ifeval'), splits.HELD_OUT, str(path)
  )
  with pytest.raises(UserError, match=message):
    prompts._check_gold(rows, prompts.Quarantine())


def test_without_langdetect_its_instructions_are_refused(monkeypatch):
  monkeypatch.setattr(instructions, 'has_langdetect', lambda: False)
  problem = text_graders.gold_problem(
    'ifeval', _gold(('change_case:english_capital', {}))
  )
  assert problem.endswith("pip install 'r1jax[ifeval]'")
  assert '\n' not in problem
  assert not text_graders.gold_problem(
    'ifeval', _gold(('punctuation:no_comma', {}))
  )
