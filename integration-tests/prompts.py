"""Twenty prompts of 1 to about 400 tokens: prose, code, digits, blanks, several scripts, emoji.

They differ from the first token on, save for one pair that shares a long beginning (a prefix cache must serve it
without changing a token), and they are also the corpus of the tiny tokenizer.
"""

from __future__ import annotations

_STORY = (
    "The lighthouse keeper had not spoken to another person for eleven days when the boat appeared. It came out of "
    "the fog without a sound, low in the water, and nobody stood at its tiller. He walked down the wet steps with "
    "his lamp, counting them as he always did, and waited where the rope was tied. When the hull touched the stones"
    " he saw that the boat was full of books, hundreds of them, wrapped in oilcloth and stacked as neatly as "
    "bricks. On top of the nearest pile lay a letter with his own name on it, written in a hand that he had not "
    "seen since he was a boy. "
)
_REPORT = (
    "Minutes of the meeting. 1. The treasurer reported an income of 12,480.75 and expenses of 9,310.20 in the third"
    " quarter; the difference goes to the roof. 2. The roof: three offers were compared, of 41,000, 38,500 and "
    "52,250. The members voted 14 to 3, with 2 abstentions, for the second. 3. The garden: the old pear tree must "
    "go, since its roots lift the paving. A new one will be planted at least 4 metres from the wall. 4. Other "
    "business: the key of the cellar is missing again. Whoever has it is asked to bring it back before Friday, no "
    "questions asked. "
)

TEXTS: list[str] = [
    "Hello",
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n: int) -> int:\n    if n < 2:\n        return n\n    return",
    "1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144,",
    "Q: What is 17 * 23?\nA:",
    "Water boils at 100 degrees Celsius at sea level because",
    "Three   spaces,\ttabs\t\tand\n\n\nnewlines    should survive",
    "Les élèves français étudient l'histoire de la",
    "日本語のテキストを少しだけ書いてみます。",
    "Привет, как дела? Сегодня хорошая погода, и",
    "🙂🚀 Emoji and accents: naïve café coöperate Ångström",
    '{"name": "anaphora", "version": 1, "tags": ["serving", "cache"], "nested": {"a": null, "b": [true, false]}}',
    "SELECT customer_id, SUM(amount) FROM orders WHERE placed_at >= '2024-01-01' GROUP BY customer_id HAVING",
    "A list of ten fruits: apple, pear, plum, cherry, fig,",
    "To be, or not to be, that is the question: Whether 'tis nobler in the mind to suffer",
    _STORY + "He opened it and read:",
    _STORY + "He put the lamp down, and for the first time in years he",
    _REPORT + "5. The next meeting is on",
    "Summarise these minutes. " + _REPORT + _STORY + "Summary:",
]
