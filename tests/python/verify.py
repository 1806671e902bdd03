"""An upstream that verifies each call with the official SDK's own signing functions.

What arrived is parsed, signed anew by the SDK and compared. The MsgId of a call that verifies is
the SHA-256 of its instance, topic and decoded payload, so that a caller can tell that exactly its
bytes arrived. Prints the port it listens at.
"""

import asyncio
import base64
import hashlib
import json
import sys
from urllib.parse import parse_qsl

from alibabacloud_tea_openapi.utils import Utils
from darabonba.request import DaraRequest

KEYS = {"testid": ("testsecret", None), "stsid": ("stssecret", "CAISsecuritytoken+/==")}


def pairs(text):
    return dict(parse_qsl(text, keep_blank_values=True, strict_parsing=True)) if text else {}


def verify_rpc(params):
    signature = params.pop("Signature")
    secret, token = KEYS[params["AccessKeyId"]]
    assert params.get("SecurityToken") == token, "token"
    assert params["Action"] == "SendMessage" and params["Version"] == "2020-04-20"
    assert len(params["SignatureNonce"]) == 32
    expected = Utils.get_rpcsignature(params, "POST", secret)
    assert signature == expected, f"{signature} is not {expected}"
    return params


def verify_acs3(headers, query, form, body):
    algorithm, fields = headers["authorization"].split(" ", 1)
    fields = dict(field.split("=", 1) for field in fields.split(","))
    secret, token = KEYS[fields["Credential"]]
    assert headers.get("x-acs-security-token") == token, "token"
    assert headers["x-acs-action"] == "SendMessage"
    assert headers["x-acs-content-sha256"] == hashlib.sha256(body).hexdigest(), "hash"
    signed = fields["SignedHeaders"].split(";")
    must = {n for n in headers if n.startswith("x-acs-") or n in ("host", "content-type")}
    assert must <= set(signed), must - set(signed)
    request = DaraRequest()
    request.method, request.pathname, request.query = "POST", "/", query
    request.headers = {name: headers[name] for name in signed}
    hashed = headers["x-acs-content-sha256"]
    expected = Utils.get_authorization(
        request, algorithm, hashed, fields["Credential"], secret)
    assert headers["authorization"] == expected, f"{headers['authorization']} is not {expected}"
    return {**query, **form}


def verify(target, headers, body):
    path, _, query = target.partition("?")
    assert path == "/", path
    kind = headers.get("content-type", "")
    form = pairs(body.decode()) if kind == "application/x-www-form-urlencoded" else {}
    query = pairs(query)
    if "authorization" in headers:
        return verify_acs3(headers, query, form, body)
    return verify_rpc({**query, **form})


def answer(target, headers, body):
    try:
        params = verify(target, headers, body)
        payload = base64.b64decode(params["Payload"], validate=True)
        seen = params["InstanceId"].encode() + b"\n" + params["MqttTopic"].encode() + b"\n"
        said = {"MsgId": hashlib.sha256(seen + payload).hexdigest(), "RequestId": "R"}
        return 200, said
    except Exception as error:  # noqa: BLE001 whatever is wrong with a call, it is refused
        print(f"refused: {error!r}", file=sys.stderr, flush=True)
        return 400, {"Code": "SignatureDoesNotMatch", "RequestId": "R", "Message": ""}


async def serve(reader, writer):
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            target = head[0].split(" ")[1]
            headers = dict(line.split(": ", 1) for line in head[1:] if line)
            headers = {name.lower(): value for name, value in headers.items()}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            status, said = answer(target, headers, body)
            said = json.dumps(said).encode()
            writer.write(
                b"HTTP/1.1 %d X\r\ncontent-type: application/json;charset=utf-8\r\n"
                b"content-length: %d\r\n\r\n%s" % (status, len(said), said))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
