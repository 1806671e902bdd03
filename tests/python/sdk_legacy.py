"""Publishes through the provider's older SDK: sdk_legacy.py HOST:PORT '[{"id", "secret", ...}, ...]'.

Prints one JSON object a call: what the SDK returned, or the Code of what it raised.
"""

import json
import sys

from aliyunsdkcore.acs_exception.exceptions import ClientException, ServerException
from aliyunsdkcore.client import AcsClient
from aliyunsdkonsmqtt.request.v20200420.SendMessageRequest import SendMessageRequest


def publish(endpoint, call):
    client = AcsClient(call["id"], call["secret"], "cn-hangzhou", auto_retry=False)
    request = SendMessageRequest()
    request.set_endpoint(endpoint)
    request.set_protocol_type("http")
    request.set_InstanceId(call["instance"])
    request.set_MqttTopic(call["topic"])
    request.set_Payload(call["payload"])
    try:
        return json.loads(client.do_action_with_exception(request))
    except ServerException as error:
        return {"Code": error.get_error_code(), "Status": error.get_http_status()}
    except ClientException as error:
        return {"Code": error.get_error_code()}


endpoint, calls = sys.argv[1], json.loads(sys.argv[2])
for call in calls:
    print(json.dumps(publish(endpoint, call)), flush=True)
