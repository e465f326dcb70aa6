"""Checks whether a response follows the 25 verifiable instructions of IFEval.

IFEval (arXiv 2311.07911) defines instructions that a program can check, such as
'at least 300 words' or 'no commas'. A prompt has one or several, with their
arguments. Strictly, the response is checked as it is. Loosely, an instruction is
followed if one of eight variants of the response follows it: with and without
its first line, its last line, and asterisks.

The definitions are those of google-research/instruction_following_eval; the
code is written from them. Two things differ: keywords are texts rather than
regular expressions, and a letter to count may be any character ('!' and '#' are
among them, for which the original counts a random letter).
"""

from collections.abc import Callable, Mapping, Sequence
import importlib.util
import itertools
import json
import re
from typing import Any, NamedTuple

from r1jax.graders import sentences

Check = Callable[..., bool]


class Instruction(NamedTuple):
  """One verifiable instruction.

  Attributes:
    check: Function from a response and the arguments to whether it follows.
    arguments: Names of the arguments, with their types.
    needs_language: Whether it detects the language of the response.
  """

  check: Check
  arguments: Mapping[str, type]
  needs_language: bool = False


class Followed(NamedTuple):
  """Whether a response follows each instruction of its prompt.

  Attributes:
    strict: For the response as it is.
    loose: For the best of its variants.
  """

  strict: tuple[bool, ...]
  loose: tuple[bool, ...]


_RELATIONS = ('less than', 'at least')


def followed(response: str, gold: str) -> Followed:
  """Checks a response.

  Args:
    response: The text of a completion behind its reasoning.
    gold: JSON of instruction_id_list and kwargs, as data/suites.py writes it.
  """
  parsed = json.loads(gold)
  given = list(
    zip(parsed['instruction_id_list'], parsed['kwargs'], strict=True)
  )
  return Followed(
    tuple(_follows(response, *each) for each in given),
    tuple(
      any(_follows(text, *each) for text in variants(response))
      for each in given
    ),
  )


def _follows(text: str, name: str, arguments: Mapping[str, Any]) -> bool:
  return bool(text.strip()) and INSTRUCTIONS[name].check(text, **arguments)


def variants(response: str) -> list[str]:
  """Returns the texts of which a loose check takes the best."""
  lines = response.split('\n')
  texts = [response]
  for kept in (lines[1:], lines[:-1], lines[1:-1]):
    texts.append('\n'.join(kept).strip())
  return texts + [text.replace('*', '') for text in texts]


def gold_problem(gold: str) -> str:
  """Returns why the instructions of a prompt cannot be checked; '' if they can.

  Args:
    gold: See `followed`.
  """
  try:
    parsed = json.loads(gold)
    names, kwargs = parsed['instruction_id_list'], parsed['kwargs']
  except (ValueError, TypeError, KeyError):
    return 'needs JSON of instruction_id_list and kwargs'
  if not names or len(names) != len(kwargs):
    return f'has {len(names)} instructions and {len(kwargs)} sets of arguments'
  return next(filter(None, map(_problem, names, kwargs)), '')


def _problem(name: str, arguments: Mapping[str, Any]) -> str:
  instruction = INSTRUCTIONS.get(name)
  if not instruction:
    return f'names {name!r:.100}, which is none of the 25 instructions'
  if arguments.keys() != instruction.arguments.keys():
    return (
      f'gives {name} the arguments {sorted(arguments)}; it takes '
      f'{sorted(instruction.arguments)}'
    )
  for key, value in arguments.items():
    kind = instruction.arguments[key]
    if type(value) is not kind or not value:
      return f'gives {name} {key} = {value!r:.100}, no {kind.__name__}'
    if key.endswith('relation') and value not in _RELATIONS:
      return f'gives {name} {key} = {value!r:.100}, not one of {_RELATIONS}'
  if instruction.needs_language and not has_langdetect():
    return f"names {name}, which needs langdetect: pip install 'r1jax[ifeval]'"
  return ''


def has_langdetect() -> bool:
  """Returns whether the optional package that detects languages is installed."""
  return importlib.util.find_spec('langdetect') is not None


def language_of(text: str) -> str | None:
  """Returns the ISO 639 code of a text's language; None if it has no letters."""
  import langdetect

  langdetect.DetectorFactory.seed = 0  # It samples: the same in every run.
  try:
    return langdetect.detect(text)
  except langdetect.LangDetectException:
    return None


def _is_in(text: str, language: str) -> bool:
  return language_of(text) in (language, None)


def _compared(count: int, relation: str, bound: int) -> bool:
  return count < bound if relation == 'less than' else count >= bound


def _occurrences(text: str, keyword: str) -> int:
  return len(re.findall(re.escape(keyword.strip()), text, re.IGNORECASE))


def _keywords(text: str, keywords: Sequence[str]) -> bool:
  return all(_occurrences(text, keyword) for keyword in keywords)


def _keyword_frequency(text, keyword: str, frequency: int, relation: str):
  return _compared(_occurrences(text, keyword), relation, frequency)


def _forbidden(text: str, forbidden_words: Sequence[str]) -> bool:
  return not any(
    re.search(rf'\b{re.escape(word)}\b', text, re.IGNORECASE)
    for word in forbidden_words
  )


def _letters(text: str, letter: str, let_frequency: int, let_relation: str):
  count = text.lower().count(letter.strip().lower())
  return _compared(count, let_relation, let_frequency)


def _num_sentences(text: str, num_sentences: int, relation: str) -> bool:
  return _compared(sentences.num_sentences(text), relation, num_sentences)


def _num_words(text: str, num_words: int, relation: str) -> bool:
  return _compared(len(re.findall(r'\w+', text)), relation, num_words)


def _pieces(text: str, mark: str) -> list[str] | None:
  """Splits at a mark; blank pieces may only stand at the ends, None if not."""
  pieces = text.split(mark)
  if not all(piece.strip() for piece in pieces[1:-1]):
    return None
  return [piece for piece in pieces if piece.strip()]


def _num_paragraphs(text: str, num_paragraphs: int) -> bool:
  pieces = _pieces(text, '***')
  return pieces is not None and len(pieces) == num_paragraphs


def _first_word(
  text: str, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
  """Counts paragraphs without blank ones, but finds the nth among all."""
  pieces = text.split('\n\n')
  count = sum(bool(piece.strip()) for piece in pieces)
  if count != num_paragraphs or nth_paragraph > count:
    return False
  opening = pieces[nth_paragraph - 1].split()
  if not opening:
    return False
  word = opening[0].lstrip("'").lstrip('"')
  return re.split(r'[.,?!\'"]', word)[0].lower() == first_word.lower()


def _placeholders(text: str, num_placeholders: int) -> bool:
  return len(re.findall(r'\[[^\n\]]*\]', text)) >= num_placeholders


_POSTSCRIPTS = {'P.S.': r'p\.\s?s\.', 'P.P.S': r'p\.\s?p\.\s?s'}


def _postscript(text: str, postscript_marker: str) -> bool:
  mark = postscript_marker.strip()
  pattern = _POSTSCRIPTS.get(mark, re.escape(mark.lower()))
  return bool(re.search(pattern, text.lower()))


def _bullets(text: str, num_bullets: int) -> bool:
  stars = re.findall(r'^[^\S\n]*\*[^*].*$', text, re.MULTILINE)
  dashes = re.findall(r'^[^\S\n]*-', text, re.MULTILINE)
  return len(stars) + len(dashes) == num_bullets


def _constrained(text: str) -> bool:
  options = ('My answer is yes.', 'My answer is no.', 'My answer is maybe.')
  return any(option in text for option in options)


def _highlights(text: str, num_highlights: int) -> bool:
  single = re.findall(r'\*([^\n*]*)\*', text)
  double = re.findall(r'\*\*([^\n*]*)\*\*', text)
  return sum(bool(x.strip()) for x in single + double) >= num_highlights


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
  mark = re.escape(section_spliter.strip())
  return len(re.findall(rf'{mark}\s?\d+', text)) >= num_sections


def _json(text: str) -> bool:
  body = text.strip()
  for fence in ('```json', '```Json', '```JSON', '```'):
    body = body.removeprefix(fence)
  try:
    json.loads(body.removesuffix('```').strip())
  except (ValueError, RecursionError):
    return False
  return True


def _title(text: str) -> bool:
  found = re.findall(r'<<[^\n]+>>', text)
  return any(title.lstrip('<').rstrip('>').strip() for title in found)


def _two_responses(text: str) -> bool:
  pieces = _pieces(text, '******') or []
  return len({piece.strip() for piece in pieces}) == len(pieces) == 2


def _repeats(text: str, prompt_to_repeat: str) -> bool:
  return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends_with(text: str, end_phrase: str) -> bool:
  return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quoted(text: str) -> bool:
  body = text.strip()
  return len(body) > 1 and body[0] == body[-1] == '"'


def _capital_words(
  text: str, capital_frequency: int, capital_relation: str
) -> bool:
  count = sum(word.isupper() for word in sentences.words(text))
  return _compared(count, capital_relation, capital_frequency)


INSTRUCTIONS = {
  'keywords:existence': Instruction(_keywords, {'keywords': list}),
  'keywords:frequency': Instruction(
    _keyword_frequency, {'keyword': str, 'frequency': int, 'relation': str}
  ),
  'keywords:forbidden_words': Instruction(
    _forbidden, {'forbidden_words': list}
  ),
  'keywords:letter_frequency': Instruction(
    _letters, {'letter': str, 'let_frequency': int, 'let_relation': str}
  ),
  'language:response_language': Instruction(_is_in, {'language': str}, True),
  'length_constraints:number_sentences': Instruction(
    _num_sentences, {'num_sentences': int, 'relation': str}
  ),
  'length_constraints:number_paragraphs': Instruction(
    _num_paragraphs, {'num_paragraphs': int}
  ),
  'length_constraints:number_words': Instruction(
    _num_words, {'num_words': int, 'relation': str}
  ),
  'length_constraints:nth_paragraph_first_word': Instruction(
    _first_word,
    {'num_paragraphs': int, 'nth_paragraph': int, 'first_word': str},
  ),
  'detectable_content:number_placeholders': Instruction(
    _placeholders, {'num_placeholders': int}
  ),
  'detectable_content:postscript': Instruction(
    _postscript, {'postscript_marker': str}
  ),
  'detectable_format:number_bullet_lists': Instruction(
    _bullets, {'num_bullets': int}
  ),
  'detectable_format:constrained_response': Instruction(_constrained, {}),
  'detectable_format:number_highlighted_sections': Instruction(
    _highlights, {'num_highlights': int}
  ),
  'detectable_format:multiple_sections': Instruction(
    _sections, {'section_spliter': str, 'num_sections': int}
  ),
  'detectable_format:json_format': Instruction(_json, {}),
  'detectable_format:title': Instruction(_title, {}),
  'combination:two_responses': Instruction(_two_responses, {}),
  'combination:repeat_prompt': Instruction(_repeats, {'prompt_to_repeat': str}),
  'startend:end_checker': Instruction(_ends_with, {'end_phrase': str}),
  'startend:quotation': Instruction(_quoted, {}),
  'change_case:capital_word_frequency': Instruction(
    _capital_words, {'capital_frequency': int, 'capital_relation': str}
  ),
  'change_case:english_capital': Instruction(
    lambda text: text.isupper() and _is_in(text, 'en'), {}, True
  ),
  'change_case:english_lowercase': Instruction(
    lambda text: text.islower() and _is_in(text, 'en'), {}, True
  ),
  'punctuation:no_comma': Instruction(lambda text: ',' not in text, {}),
}


def prepare() -> Callable[[dict], dict]:
  """Loads the profiles of languages, if they are there; returns the job function."""
  if has_langdetect():
    language_of('What language is this?')
  return handle


def handle(job: dict) -> dict:
  """Checks one response, inside a worker process.

  Args:
    job: {'response': text, 'gold': see `followed`}.

  Returns:
    The fields of Followed.
  """
  return followed(job['response'], job['gold'])._asdict()


def accuracies(checked: Sequence[Followed]) -> dict[str, float]:
  """Returns the four accuracies that IFEval reports, within [0, 1].

  prompt_strict is that of the verdicts: the share of responses that follow all
  their instructions. The others are for single instructions and loose checks.

  Args:
    checked: One record a response; at least one.
  """
  result = {}
  for kind in Followed._fields:
    lists = [getattr(each, kind) for each in checked]
    single = list(itertools.chain(*lists))
    result[f'prompt_{kind}'] = sum(map(all, lists)) / len(lists)
    result[f'instruction_{kind}'] = sum(single) / len(single)
  return result
