"""Obtains keys through the provider's own credentials library, and publishes with each through its SDK:
sdk_keys.py EMULATOR_HOST:PORT KEYRING_URI TOKEN_FILE.

Prints one JSON object a provider: its name, the key's id, and the MsgId that the SDK returned.

The library speaks https to the Security Token Service and has a fixed address for the metadata service; the
emulator is at another one, and speaks http. Only that is changed here.
"""

import json
import sys

from alibabacloud_credentials.provider import (
    EcsRamRoleCredentialsProvider,
    OIDCRoleArnCredentialsProvider,
    RamRoleArnCredentialsProvider,
    StaticAKCredentialsProvider,
    URLCredentialsProvider,
)
from alibabacloud_onsmqtt20200420 import models
from alibabacloud_onsmqtt20200420.client import Client
from alibabacloud_tea_openapi.utils_models import Config
from Tea.core import TeaCore

emulator, keyring, token_file = sys.argv[1:4]
host, port = emulator.split(":")
role = "acs:ram::1000000000000001:role/tollgate"
do_action = TeaCore.do_action


def over_http(request, runtime_option=None):
    if request.headers["host"] in ("sts.emulated", "100.100.100.200"):
        request.protocol, request.headers["host"], request.port = "http", host, int(port)
    return do_action(request, runtime_option)


TeaCore.do_action = staticmethod(over_http)


def publish(key):
    config = Config(
        access_key_id=key.get_access_key_id(),
        access_key_secret=key.get_access_key_secret(),
        security_token=key.get_security_token(),
        endpoint=emulator,
        protocol="http",
    )
    request = models.SendMessageRequest(
        instance_id="post-cn-test", mqtt_topic="Alarm/fire", payload="aGVsbG8="
    )
    return Client(config).send_message(request).body.msg_id


providers = [
    URLCredentialsProvider(uri=keyring),
    RamRoleArnCredentialsProvider(
        credentials_provider=StaticAKCredentialsProvider(
            access_key_id="demo-key-id", access_key_secret="demo-key-secret"
        ),
        role_arn=role,
        role_session_name="python",
        sts_endpoint="sts.emulated",
    ),
    OIDCRoleArnCredentialsProvider(
        role_arn=role,
        oidc_provider_arn="acs:ram::1000000000000001:oidc-provider/ack-rrsa-c1",
        oidc_token_file_path=token_file,
        role_session_name="python",
        sts_endpoint="sts.emulated",
    ),
    EcsRamRoleCredentialsProvider(async_update_enabled=False),
]
for provider in providers:
    key = provider.get_credentials()
    name = provider.get_provider_name()
    print(json.dumps({"provider": name, "id": key.get_access_key_id(), "MsgId": publish(key)}), flush=True)
