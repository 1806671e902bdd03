"""Publishes through the provider's SDK: sdk_publish.py HOST:PORT '[{"id", "secret", ...}, ...]'.

Prints one JSON object a call: what the SDK returned, or the Code of what it raised.
"""

import json
import sys

from alibabacloud_onsmqtt20200420 import models
from alibabacloud_onsmqtt20200420.client import Client
from alibabacloud_tea_openapi.utils_models import Config


def client(endpoint, call):
    config = Config(
        access_key_id=call["id"],
        access_key_secret=call["secret"],
        security_token=call["token"] or None,
        endpoint=endpoint,
        protocol="http",
    )
    if call["signature"]:
        config.signature_algorithm = call["signature"]
    return Client(config)


def publish(endpoint, call):
    request = models.SendMessageRequest(
        instance_id=call["instance"], mqtt_topic=call["topic"], payload=call["payload"]
    )
    try:
        body = client(endpoint, call).send_message(request).body
    except Exception as error:
        if getattr(error, "code", None) is None:
            raise
        return {"Code": error.code, "RetryAfter": getattr(error, "retry_after", None)}
    return {"MsgId": body.msg_id, "RequestId": body.request_id}


endpoint, calls = sys.argv[1], json.loads(sys.argv[2])
for call in calls:
    print(json.dumps(publish(endpoint, call)), flush=True)
