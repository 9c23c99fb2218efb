"""Prompts that ask for what the constraints of `constrained_cases` allow, as one writes them for a small model: an instruction, worked examples, and then the question.

By the name of the constraint. The examples of schemas are the values, without JSON around them.
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

CHAT: Final = "<|im_start|>system\n{}<|im_end|>\n"
EXCHANGE: Final = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


class Prompts(NamedTuple):
    """Four prompts for one constraint.

    Attributes:
        instruction: what is wanted.
        examples: what is asked, and the output: a text, or a value of which the JSON is meant.
        topics: what else is asked.
    """

    instruction: str
    examples: dict[str, Any]
    topics: tuple[str, str, str, str]

    def outputs(self) -> list[str]:
        """The texts of the examples."""
        return [_text(output) for output in self.examples.values()]

    def written(self) -> list[str]:
        """All of them as chats, the examples as exchanges before; each ends where the output begins."""
        shown = [
            f"{EXCHANGE.format(about)}{output}<|im_end|>\n"
            for about, output in zip(self.examples, self.outputs(), strict=True)
        ]
        before = CHAT.format(self.instruction) + "".join(shown)
        return [before + EXCHANGE.format(topic) for topic in self.topics]


def _text(output: Any) -> str:
    return output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)


_HERMIONE = """{
    "name": "Hermione Granger",
    "house": "Gryffindor",
    "blood status": "Muggle-born",
    "occupation": "student",
    "wand": {
        "wood": "Vine",
        "core": "Dragon",
        "length": 10.75
    },
    "alive": "Alive",
    "patronus": "Otter",
    "bogart": "Failure"
}"""
_PEOPLE = "| name | age |\n|------|-----|\n| Anna | 31 |\n| Peter | 47 |\n"
REGEXES: Final = {
    "character": Prompts("Fill in the sheet of a character of Harry Potter.",
        {"Hermione Granger": _HERMIONE},
        ("Harry Potter", "Luna Lovegood", "Draco Malfoy", "Severus Snape, der Lehrer")),
    "ipv4": Prompts("Answer with one IPv4 address.",
        {"a home router": "192.168.1.1", "a public name server": "8.8.8.8"},
        ("your own computer", "a printer in the office", "un serveur public", "netmask of a small network")),
    "ipv6": Prompts("Answer with one IPv6 address, written out in full.",
        {"the local host": "0:0:0:0:0:0:0:1", "an example": "2001:db8:0:0:0:0:0:1"},
        ("a web server", "the second example", "un routeur", "a name server of Google")),
    "mac": Prompts("Answer with one MAC address.",
        {"a laptop": "3C:22:FB:9A:10:4E", "broadcast": "FF:FF:FF:FF:FF:FF"},
        ("a printer", "a telephone", "ein Drucker", "nothing but zeros")),
    "uuid": Prompts("Answer with one random UUID.",
        {"for an order": "3f2b8c1e-9d47-4a6b-8e21-5c0d7f9a1b34", "for a user": "b7e0d9a2-41c3-4f58-9a6d-2e8b7c105f93"},
        ("for a file", "for a session", "pour un client", "for a book")),
    "date": Prompts("When was it? Answer with the date.",
        {"The first man on the moon": "1969-07-20", "The fall of the Berlin wall": "1989-11-09"},
        ("The attack on Pearl Harbor", "The end of World War II in Europe", "La prise de la Bastille", "The birth of Albert Einstein")),
    "long date": Prompts("Write the date out.",
        {"1969-07-20": "Sunday, July 20, 1969", "2000-01-01": "Saturday, January 1, 2000"},
        ("2001-09-11", "1989-11-09", "1999-12-31", "le 14 juillet 2023")),
    "moment": Prompts("Write the time in UTC.",
        {"half past nine in the morning of 1 May 2024": "2024-05-01T09:30:00Z", "midnight of 1 January 2020": "2020-01-01T00:00:00Z"},
        ("noon of 4 July 2023", "six in the evening of 24 December 2022", "le 3 mars 2021 à huit heures", "ten past three at night, 15 August 2020")),
    "number": Prompts("Answer with a number.",
        {"absolute zero in degrees Celsius": "-273.15", "the speed of light in m/s": "2.9979e8"},
        ("pi", "days of a year", "el número de Avogadro", "half of minus three")),
    "price": Prompts("What does it cost?",
        {"a coffee in Rome": "€1.20", "a used car in Texas": "$12,500.00", "a newspaper in London": "£2.50"},
        ("a television in Chicago", "a beer in Berlin", "un pain à Paris", "a train ticket from London to Leeds")),
    "mail": Prompts("Make up the mail address of this person.",
        {"Anna Smith of Example": "anna.smith@example.com", "Bob, BBC": "bob@bbc.co.uk"},
        ("Peter Jones of Google", "Maria, Wikipedia", "Jean Dupont chez Orange", "the sales department of Tesco")),
    "address": Prompts("Where on the web is it?",
        {"Wikipedia": "https://www.wikipedia.org", "Python on GitHub": "https://github.com/python"},
        ("Google", "the news of CNN", "Linux on GitHub", "el diario El País")),
    "version": Prompts("Which version is it?",
        {"the second fix of one point four": "v1.4.2", "first beta of two": "v2.0.0-beta.1"},
        ("the first release", "the third fix of two point one", "first candidate of version three", "zweite Alpha von fünf")),
    "sql": Prompts("Write the query.",
        {"names of all users older than 30": "SELECT name FROM users WHERE age > 30;", "how many orders there are": "SELECT COUNT(*) FROM orders;"},
        ("the age of user 7", "how many users are 18", "names of all users, ordered by age", "noms des commandes")),
    "xml": Prompts("Write it as XML.",
        {"Anna is 31 and lives in Rome": "<person><name>Anna</name><age>31</age><city>Rome</city></person>"},
        ("Peter is 47 and lives in London", "Mary of Boston is 8", "Juan tiene 20 años y vive en Madrid", "Olga, 66, New York")),
    "html": Prompts("Write a list of two in HTML.",
        {"fruit": "<ul>\n  <li>Apples</li>\n  <li>Pears</li>\n</ul>"},
        ("colours", "animals", "deux villes de France", "things to drink")),
    "call": Prompts("Call the function.",
        {"Will it rain in Paris until Wednesday? It is Monday.": 'get_weather(city="Paris", unit="celsius", days=3)', "New York tomorrow": 'get_weather(city="New York", unit="fahrenheit", days=1)'},
        ("How warm will it be in Berlin for five days?", "London tomorrow", "El tiempo en Madrid, una semana", "two days of San Francisco")),
    "python": Prompts("Write a function in Python.",
        {"the first of two numbers": "def first(a, b) -> int:\n    return a\n", "always one": "def one() -> int:\n    return 1\n"},
        ("the second of two numbers", "always zero", "the name of a user", "le plus petit nombre")),
    "table": Prompts("Write a table of two people.",
        {"Anna is 31, Peter 47": _PEOPLE},
        ("Mary is 22, John 54", "Tom is 10 and his sister Lisa 12", "Pablo tiene 30 años y Lucia 28", "Oscar 77, Emma 75")),
    "log": Prompts("Write a line of the log.",
        {"The disk is full.": "[ERROR] disk: no space left (code=507)", "Somebody has logged in.": "[INFO] login: user logged in (code=200)"},
        ("The network is slow.", "A file was not found.", "Le serveur a démarré.", "The battery is low.")),
    "react": Prompts("Think, then act.",
        {"How old is Bill Gates?": "Thought: I need the age of Bill Gates.\nAction: Search[Bill Gates]", "What is 2 + 2?": "Thought: I know the answer.\nAction: Finish[It is 4]"},
        ("Who wrote Hamlet?", "How high is Mount Everest?", "¿Cuál es la capital de Perú?", "What is 3 + 5?")),
    "commit": Prompts("Write the subject of the commit.",
        {"The parser failed on empty input.": "fix(parser): handle empty input", "The manual says now what the cache is for.": "docs: explain the cache"},
        ("Users can log in by password now.", "The readme has an example now.", "Le serveur tombait en panne.", "A long function became three short ones.")),
    "list": Prompts("Write the numbers as a list.",
        {"even ones up to eight": "[2, 4, 6, 8]", "from ten down to seven": "[10, 9, 8, 7]"},
        ("the first five", "odd ones up to nine", "de uno a tres", "multiples of ten up to fifty")),
    "words": Prompts("Who was it? First name and name.",
        {"found radium": "Marie Curie", "wrote Hamlet": "William Shakespeare"},
        ("found relativity", "first on the moon", "peintre de Guernica", "first president of the United States")),
    "quoted": Prompts("Say it in two words, between quotes.",
        {"greeting": '"Good morning"', "farewell": '"Good bye"'},
        ("thanks", "greeting at night", "a wish for a birthday", "buenos días")),
    "any case": Prompts("Yes or no?",
        {"Is water wet?": "Yes.", "Is fire cold?": "No!", "Will it rain?": "Perhaps."},
        ("Is the sun hot?", "Do fish fly?", "La Terre est-elle ronde ?", "Shall we win the lottery?")),
    "forced": Prompts("What is the answer?",
        {"life, the universe and everything": "The answer is forty-two. That is all there is to say about it.", "what was before time": "The answer is unknown. That is all there is to say about it."},
        ("six times seven", "the meaning of life", "who is behind the door", "la vida, el universo y todo")),
    "nothing to choose": Prompts("Say the sentence.",
        {"now": "There is nothing to choose here: 2 + 2 = 4."},
        ("once more", "louder", "noch einmal", "What is there to choose?")),
    "verdict": Prompts("Judge the claim.",
        {"Cows drink milk.": "Verdict: false\nConfidence: medium\nReason: Calves drink milk, cows drink water.", "Ice is cold.": "Verdict: true\nConfidence: high\nReason: Ice is frozen water."},
        ("The sun is hot.", "Fish can fly.", "Paris est en Italie.", "The earth is flat.")),
    "white space": Prompts("Keep the white space.",
        {"c": "a   b  c\t\n\n    e", "d": "a   b  d\t\n\n    eee"},
        ("c", "d and one e", "c y tres e", "d")),
    "pi": Prompts("Say the numbers with as many digits as asked.",
        {"pi and e": "Pi is 3.1415926535 and e is 2.7182818"},
        ("pi and e", "e and pi, please", "pi y e", "the two constants")),
    "cyrillic": Prompts("Ответь одним словом.",
        {"Столица России": "Москва", "Цвет неба": "Синий", "Сколько времени": "Пять часов"},
        ("Столица Франции", "Цвет травы", "Язык Пушкина", "Winter in Russian")),
    "greek": Prompts("Ποια είναι η πόλη;",
        {"Ακρόπολη": "Η πόλη είναι η Αθήνα.", "Γέφυρα Ρίου": "Η πόλη είναι η Πάτρα."},
        ("Κολοσσαίο", "Τιμές Σκουέρ", "The capital of Greece", "Αγία Σοφία")),
    "han": Prompts("请回答。",
        {"中国的首都": "答案是北京。", "日本的首都": "答案是东京。"},
        ("法国的首都", "中国最大的城市", "最大的动物", "What is the capital of China?")),
    "hangul": Prompts("대답하세요.",
        {"한국의 수도": "정답: 서울입니다", "일본의 수도": "정답: 도쿄입니다"},
        ("중국의 수도", "프랑스의 수도", "가장 큰 동물", "the capital of Korea")),
    "emoji": Prompts("Report with emoji.",
        {"a party": "🎉🎉 done", "a launch": "🚀 done", "a joke": "😂😂😂 done"},
        ("a birthday", "a flight to the moon", "una broma muy buena", "a smile")),
    "accents": Prompts("Di cómo es.",
        {"el perro": "El perro es rápido.", "la lección": "La lección es difícil.", "la casa": "La casa es pequeño."},
        ("el caballo", "la mesa", "el examen", "the car")),
    "mixed scripts": Prompts("Насколько это далеко? どのくらい遠いですか?",
        {"Москва — Тула": "Ответ: 180 км", "東京と横浜": "答え: 30公里", "القاهرة": "الجواب: 200 كم"},
        ("Москва — Рязань", "東京と千葉", "Киев — Минск", "القاهرة والإسكندرية")),
}  # fmt: skip
CHOICES: Final = {
    "cities": Prompts("Which city is it?",
        {"the Eiffel tower": "Paris", "the tango": "Buenos Aires", "the fastest camel": "I do not know"},
        ("Big Ben", "la capitale de la France", "the name of my cat", "the capital of Argentina")),
    "prefixes": Prompts("Write the first letters of the alphabet.",
        {"three": "abc", "two": "ab"},
        ("one", "four", "drei", "only the second")),
    "long prefixes": Prompts("Answer in one sentence.",
        {"What will be in a thousand years?": "The answer cannot be known.", "Is fire cold?": "The answer is no."},
        ("Do fish fly?", "What is the password of Tom?", "¿Es fría la luz del sol?", "Who will win the lottery?")),
    "numbers": Prompts("Answer with a number.",
        {"hours on a clock": "12", "years of a century": "100"},
        ("hands of a man", "metres of a kilometre", "doigts des deux mains", "suns in the sky")),
    "emoji": Prompts("Answer with one emoji.",
        {"The food was good.": "👍", "The film was bad.": "👎", "Paris": "🇫🇷"},
        ("The hotel was nice.", "I hate it.", "Helsinki", "une famille")),
    "chinese": Prompts("请用一个词回答。",
        {"中国的首都": "北京", "明天的天气": "不知道"},
        ("中国最大的城市", "我的名字", "长城在哪里", "Where is the Bund?")),
    "japanese": Prompts("一言で答えてください。",
        {"日本の首都": "東京", "明日の天気": "わかりません", "たこ焼き": "大阪です"},
        ("古い都", "東京タワー", "私の名前", "the capital of Japan")),
    "accents": Prompts("Write the word.",
        {"coffee in French": "café", "coffee shop, without an accent": "cafe"},
        ("coffee in Spanish", "innocent and trusting", "a big city of Brazil", "une tasse noire")),
    "arabic and hebrew": Prompts("نعم أم لا? כן או לא?",
        {"هل الشمس حارة؟": "نعم", "האם האש קרה?": "לא"},
        ("هل النار باردة؟", "האם המים רטובים?", "هل الماء سائل؟", "האם דגים עפים?")),
    "hindi and thai": Prompts("हाँ या नहीं? ใช่หรือไม่ใช่?",
        {"क्या सूरज गरम है?": "हाँ", "ไฟเย็นไหม": "ไม่ใช่"},
        ("क्या आग ठंडी है?", "น้ำเปียกไหม", "क्या पानी गीला है?", "ปลาบินได้ไหม")),
    "quotes": Prompts("Write yes.",
        {"between double quotes": '"yes"', "between single quotes": "'yes'", "behind a space": " yes"},
        ("between backslashes", "between double quotes", "entre guillemets simples", "with a line break")),
    "one": Prompts("Answer the question.",
        {"What is new?": "Whatever you ask, this is the only possible answer — always."},
        ("Who are you?", "What is the weather like?", "¿Qué hora es?", "Is there another answer?")),
    "special": Prompts("Which mark ends a text?",
        {"Llama": "</s>"},
        ("Mistral", "Gemma", "the chat of Qwen", "le modèle Llama 2")),
    "sentences": Prompts("How does it sound?",
        {"You are great!": "Positive: the text is kind.", "You fool.": "Negative: the text is unkind.", "It is noon.": "Neutral."},
        ("I love you.", "Go away, idiot!", "La table est verte.", "Thank you so much.")),
}  # fmt: skip
GRAMMARS: Final = {
    "sum": Prompts("Calculate.",
        {"three and four": "3 + 4 = 7", "twice five and one": "(2 * 5) + 1 = 11"},
        ("two and six", "three times three", "cuatro y cinco", "one, two and three")),
    "brackets": Prompts("Put it into brackets.",
        {"hello, once": "(hello)", "hello, twice": "([(hello)])", "nothing": "()"},
        ("world, once", "cat, twice", "rien", "tree, once")),
    "command": Prompts("Give the robot its command.",
        {"Go three steps north.": "move north by 3 steps", "Greet them.": 'say "good morning"'},
        ("Go two steps south.", "Say thanks.", "Five steps to the northwest!", "Di buenas noches.")),
    "tagged": Prompts("Answer between tags.",
        {"What is the sun?": "<answer>The sun is a star</answer>", "What is in my pocket?": "<answer><none/></answer>"},
        ("What is the moon?", "What is water?", "Qu'est-ce que Paris ?", "What am I thinking of?")),
}  # fmt: skip
_HOME = {"user": {"name": "Anna", "address": {"street": "Via Appia 7", "city": "Rome"}}, "active": True}
_POINTS = {"points": [{"x": 1, "y": 2}, {"x": -3, "y": 4}]}
_TREE = {"value": 1, "children": [{"value": 2, "children": []}, {"value": 3, "children": []}]}
SCHEMAS: Final = {
    "person": Prompts("Extract the person as JSON.",
        {"Anna, 31, has a husband.": {"name": "Anna", "age": 31, "married": True}, "Little Tom is 4.": {"name": "Tom", "age": 4, "married": False}},
        ("Peter is 47 and has a wife.", "Mary of Boston, a child of 8.", "Juan tiene 20 años y no está casado.", "Grandmother Emma is 75; her husband is Oscar.")),
    "nested": Prompts("Extract the user as JSON.",
        {"Anna lives in Rome, 7 Via Appia; she logs in daily.": _HOME},
        ("Peter of 10 High Street, London, was here today.", "Mary left long ago: 3 Main Street, Boston.", "Juan vive en Madrid, Calle Mayor 5.", "Emma, 8 Long Lane, Leeds, every day")),
    "enum": Prompts("Rate the text as JSON.",
        {"What a day!": {"mood": "happy", "score": 2.5}, "It is noon.": {"mood": "neither happy nor sad", "score": None}},
        ("My dog has died.", "I love the sea.", "La table est verte.", "We won the game!")),
    "optional": Prompts("Describe the book as JSON.",
        {"Dune, 65 years after Christ": {"title": "Dune", "year": 65}, "Frankenstein or the Modern Prometheus": {"title": "Frankenstein", "subtitle": "Modern Times"}},
        ("Hamlet", "Walden, or Life in the Woods", "Don Quijote", "The Hobbit, in the year 37")),
    "nullable": Prompts("Extract name and age as JSON; null for what is not known.",
        {"Anna is 31.": {"name": "Anna", "age": 31}, "Somebody is 20.": {"name": None, "age": 20}, "Here is Tom.": {"name": "Tom", "age": None}},
        ("Peter is 47.", "I met Mary.", "Alguien tiene 60 años.", "Nobody knows.")),
    "structs": Prompts("Write the points as JSON.",
        {"1, 2 and -3, 4": _POINTS},
        ("5, 6 and 7, 8", "0, 0 and 10, 9", "-1, 1 und -2, 2", "two and two; three and three")),
    "array": Prompts("Write a list as JSON.",
        {"two colours": ["red", "blue"], "three pets": ["dog", "cat", "bird"]},
        ("two numbers in words", "three fruits", "dos ciudades de España", "four seasons")),
    "pair": Prompts("Name and age as JSON.",
        {"Anna is 31.": ["Anna", 31], "Little Tom, 4": ["Tom", 4]},
        ("Peter is 47.", "Mary of Boston, 8", "Juan tiene 20 años.", "Emma will be 75.")),
    "union": Prompts("Write the shape as JSON.",
        {"a circle of radius 5": {"kind": "circle", "radius": 5}, "a square of 3": {"kind": "square", "side": 3}},
        ("a circle of radius 12", "a square with a side of 40", "un cercle de rayon 7", "something with four sides of 9")),
    "constants": Prompts("Answer as JSON with a note.",
        {"All is well.": {"version": "1.0", "ok": True, "tags": ["a", "b"], "note": "all is well"}},
        ("The work is done.", "Say hello.", "Todo está bien.", "The disk is new.")),
    "pattern": Prompts("Code and colour as JSON.",
        {"the red box, number 17": {"code": "BOX-0017", "colour": "#ff0000"}, "green car 2024": {"code": "CAR-2024", "colour": "#00ff00"}},
        ("the blue bus, number 42", "black cat 7", "le sac blanc, numéro 300", "yellow hat 1999")),
    "formats": Prompts("Day of birth and address as JSON.",
        {"Anna, 20 July 1969, at home": {"born": "1969-07-20", "at": "192.168.1.1"}},
        ("Peter, 9 November 1989, office", "Mary, 1 January 2000, her own computer", "Juan, 14 de marzo de 1975", "Emma, 31 December 1948, 10.0.0.7")),
    "uuid": Prompts("Make up a JSON record of the user.",
        {"Anna": {"id": "3f2b8c1e-9d47-4a6b-8e21-5c0d7f9a1b34", "name": "Anna"}},
        ("Peter", "Mary", "Señor Juan", "Emma")),
    "definitions": Prompts("The line as JSON.",
        {"from 1, 2 to 30, 4": {"start": {"x": 1, "y": 2}, "end": {"x": 30, "y": 4}}},
        ("from 0, 0 to 10, 9", "from 5, 6 to 7, 8", "de 3, 3 à 20, 1", "between -1, 1 and 50, 5")),
    "unicode keys": Prompts("Fill in the form.",
        {"Anna, 31, Rome, glad": {"имя": "Anna", "年齢": 31, "ciudad — ñ": "Rome", "😀": True}},
        ("Peter, 47, London, sad", "Mary, 8, Boston, glad", "Juan, 20 años, Madrid, contento", "Иван, 60, Москва")),
    "escapes": Prompts("Write the JSON.",
        {"letter": {'say "hi"': 'a "quoted"\n\\ text', "tab\t": "é"}, "tab": {'say "hi"': 'a "quoted"\n\\ text', "tab\t": "\t"}},
        ("letter", "tab", "another letter", "retour en arrière")),
    "call": Prompts("Call the function as JSON.",
        {"A room in Rome for the two of us": {"name": "search_hotels", "arguments": {"location": "Rome", "guests": 2}}},
        ("A hotel in London for four", "I go to Boston alone.", "Somos tres en Madrid.", "New York, five people")),
    "tree": Prompts("Write the tree as JSON.",
        {"1 over 2 and 3": _TREE, "only 7": {"value": 7, "children": []}},
        ("4 over 5 and 6", "only 9", "10 sobre 20", "8 over nothing")),
    "boolean": Prompts("true or false?",
        {"Ice is cold.": True, "Fish can fly.": False},
        ("The sun is hot.", "Paris est en Italie.", "Two and two is five.", "Water is wet.")),
}  # fmt: skip
