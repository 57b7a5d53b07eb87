#!/usr/bin/env python3
"""OpenAI's own client against a server of ours: answers, streams, log-probabilities, embeddings, errors, many at once.

    pip install openai
    fledgling serve MODEL --port 8081 &      (or the example `listen` of fledgling-lambda; MODEL must have a chat template)
    openai_client.py http://127.0.0.1:8081/v1

Ends with an AssertionError at the first answer that is not as the client's types and OpenAI's documentation have it.
"""
import asyncio
import math
import sys
import time

import openai

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
SYSTEM = {"role": "system", "content": "You are a helpful geographer. " * 12}


def answers(client, model):
    chat = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=16, temperature=0)
    choice = chat.choices[0]
    assert choice.message.role == "assistant" and "Paris" in choice.message.content, choice
    assert choice.finish_reason in ("stop", "length") and chat.usage.total_tokens > chat.usage.prompt_tokens

    text, last = "", None
    for chunk in client.chat.completions.create(
            model=model, messages=QUESTION, max_tokens=16, temperature=0, stream=True, stream_options={"include_usage": True}):
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
        last = chunk
    assert text == choice.message.content and last.usage.completion_tokens == chat.usage.completion_tokens

    one = client.completions.create(model=model, prompt="Once upon a time", max_tokens=8)
    both = client.completions.create(model=model, prompt=["Once upon a time", "The sun"], max_tokens=8, n=2)
    assert [c.index for c in both.choices] == [0, 1, 2, 3]
    assert both.choices[0].text == both.choices[1].text == one.choices[0].text


def log_probabilities(client, model):
    chat = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=4, logprobs=True, top_logprobs=3)
    for token in chat.choices[0].logprobs.content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1 + 1e-5
        assert bytes(token.bytes).decode(errors="replace") == token.token
    scored = client.completions.create(model=model, prompt="The capital of France is Paris", max_tokens=0, echo=True, logprobs=1)
    scores = scored.choices[0].logprobs
    assert scores.token_logprobs[0] is None and "".join(scores.tokens) == "The capital of France is Paris"
    assert math.exp(scores.token_logprobs[-1]) > 0.1, "the model knows it"
    banned = client.completions.create(
        model=model, prompt="The capital of France is", max_tokens=1, logit_bias={str(first_token(client, model)): -100})
    assert "Paris" not in banned.choices[0].text


def first_token(client, model):
    answer = client.completions.create(
        model=model, prompt="The capital of France is", max_tokens=1, extra_body={"return_token_ids": True})
    return answer.choices[0].model_extra["token_ids"][0]


def embeddings(client, model):
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose by a quarter of a percent."]
    cat, kitten, bank = (item.embedding for item in client.embeddings.create(model=model, input=texts).data)
    floats = client.embeddings.create(model=model, input=texts[0], encoding_format="float").data[0].embedding
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    assert abs(dot(cat, cat) - 1) < 1e-4 and all(abs(a - b) < 1e-6 for a, b in zip(cat, floats))
    assert dot(cat, kitten) > dot(cat, bank), "what is alike is near"


def errors(client, model):
    for wrong, kind, param in [
        (dict(messages=[]), openai.BadRequestError, "messages"),
        (dict(messages=QUESTION, temperature=9), openai.BadRequestError, "temperature"),
        (dict(messages=QUESTION, n=99), openai.BadRequestError, "n"),
        (dict(messages=QUESTION, model="no-such-model"), openai.NotFoundError, "model"),
    ]:
        try:
            client.chat.completions.create(**{"model": model, **wrong})
        except kind as error:
            assert error.param == param and error.request_id, error
        else:
            raise AssertionError(f"{wrong} was taken")


def cache(client, model):
    ask = lambda text: client.chat.completions.create(
        model=model, messages=[SYSTEM, {"role": "user", "content": text}], max_tokens=4)
    cold = ask("Where is Rome?")
    start = time.monotonic()
    warm = ask("Where is Oslo?")
    seconds = time.monotonic() - start
    n_known, n_prompt = warm.usage.prompt_tokens_details.cached_tokens, warm.usage.prompt_tokens
    assert n_known > 0.8 * n_prompt, (n_known, n_prompt)
    print(f"{n_known} of {n_prompt} prompt tokens were known: {1e3 * seconds:.0f} ms (before: {cold.usage.prompt_tokens_details.cached_tokens})")


async def many(base_url, model, n_streams, n_tokens):
    """Tokens a second of concurrent streams, of which one is dropped in the middle."""
    async def stream(client, i, drop=False):
        n_pieces, usage = 0, None
        chunks = await client.completions.create(
            model=model, prompt=f"{i} Once upon a time", max_tokens=n_tokens, stream=True, extra_body={"ignore_eos": True},
            stream_options={"include_usage": True})
        async for chunk in chunks:
            n_pieces, usage = n_pieces + 1, chunk.usage
            if drop and n_pieces > 3:
                break
        await chunks.close()
        if drop:
            return 0
        return usage.completion_tokens

    start = time.monotonic()
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=5) as client:
        streams = [stream(client, i) for i in range(n_streams)]
        counts = await asyncio.gather(*streams, stream(client, -1, drop=True))
    seconds = time.monotonic() - start
    assert counts == [n_tokens] * n_streams + [0], counts
    print(f"{n_streams:3} streams: {n_streams * n_tokens / seconds:6.1f} tokens/s")


def main():
    base_url = sys.argv[1]
    client = openai.OpenAI(base_url=base_url, api_key="none")
    model = client.models.list().data[0].id
    for check in (answers, log_probabilities, embeddings, errors, cache):
        check(client, model)
        print(f"{check.__name__}: as expected")
    for n_streams in (1, 4, 16, 40):
        asyncio.run(many(base_url, model, n_streams, 32))


if __name__ == "__main__":
    main()
