"""Text of a given form: regular expressions, a JSON schema, numbers and strings by their type."""
# mypy: ignore-errors

import json

import sglang as sgl

FORM = r'\{"name": "[A-Z][a-z]{2,10}", "house": "(North|South)", "age": [1-9][0-9]\}'
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "large": {"type": "boolean"}},
        "required": ["city", "large"],
        "additionalProperties": False,
    }
)


@sgl.function
def character(s):
    s += "A wizard of a school, as JSON: " + sgl.gen("wizard", max_tokens=48, regex=FORM) + "\n"
    s += "A city, as JSON: " + sgl.gen("city", max_tokens=48, json_schema=SCHEMA) + "\n"
    s += "Two plus two is " + sgl.gen_int("sum", max_tokens=4) + "\n"
    s += "The sky is blue: " + sgl.gen("truth", max_tokens=4, dtype=bool) + "\n"


def main():
    state = character.run(temperature=0)
    wizard, city = json.loads(state["wizard"]), json.loads(state["city"])
    return {
        "wizard": sorted(wizard),
        "house": wizard["house"] in ("North", "South"),
        "city": sorted(city),
        "sum": state["sum"].strip().lstrip("+-").isdigit(),
        "truth": state["truth"] in ("True", "False"),
    }
