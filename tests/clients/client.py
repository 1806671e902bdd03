"""Sends the requests of a plan over keep-alive, with the library that the first argument names.

A line of the plan: status, method, path, header or -, bytes; separated by tabs. Prints what differs.
"""

import asyncio
import http.client
import sys

library, address, plan = sys.argv[1:]
rows = [line.rstrip("\n").split("\t") for line in open(plan, encoding="ascii")]


def headers_of(header):
    return {} if header == "-" else dict([header.split(": ", 1)])


def check(number, row, status, body):
    known = b"MsgId" in body if row[0] == "200" else b"urn:tollgate:" in body
    if str(status) != row[0] or not known:
        print("request", number, row, "was answered", status, body[:200])


def with_http_client():
    connection = http.client.HTTPConnection(address, timeout=60)
    for number, row in enumerate(rows):
        _, method, path, header, size = row
        connection.request(method, path, body=b"x" * int(size), headers=headers_of(header))
        answer = connection.getresponse()
        check(number, row, answer.status, answer.read())


def with_requests():
    import requests

    session = requests.Session()
    session.trust_env = False
    for number, row in enumerate(rows):
        _, method, path, header, size = row
        answer = session.request(
            method,
            f"http://{address}{path}",
            data=b"x" * int(size),
            headers=headers_of(header),
            timeout=60,
        )
        check(number, row, answer.status_code, answer.content)


async def with_aiohttp():
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=4)) as session:

        async def send(numbers):
            for number in numbers:
                row = rows[number]
                _, method, path, header, size = row
                url = f"http://{address}{path}"
                body = b"x" * int(size)
                async with session.request(method, url, data=body, headers=headers_of(header)) as answer:
                    check(number, row, answer.status, await answer.read())

        await asyncio.gather(*(send(range(start, len(rows), 4)) for start in range(4)))


if library == "http.client":
    with_http_client()
elif library == "requests":
    with_requests()
else:
    asyncio.run(with_aiohttp())
print("sent", len(rows))
