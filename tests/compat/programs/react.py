"""An agent that chooses a tool, is given what the tool says, and goes on until it is told to answer."""
# mypy: ignore-errors

import sglang as sgl

ATLAS = {"Peru": "Lima", "Kenya": "Nairobi"}


@sgl.function
def agent(s, question):
    s += "Question: " + question + "\n"
    for step in range(3):
        s += f"Thought {step}:" + sgl.gen("thought", max_tokens=8, stop="\n") + "\nAction: "
        s += sgl.select("tool", choices=["atlas", "answer"]) + "\n"
        if s["tool"] == "answer":
            break
        s += "Observation: "
        for country, capital in ATLAS.items():
            if country in question:
                s += f"the capital of {country} is {capital}"
        s += "\n"
    s += "Answer:" + sgl.gen("answer", max_tokens=6, stop=["\n", "."])
    return s["answer"].strip()


def main():
    state = agent.run(question="What is the capital of Peru?", temperature=0)
    return {"answer": state.ret_value, "tool": state["tool"], "text": state.text()}
