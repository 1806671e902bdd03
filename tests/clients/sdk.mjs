// Publishes through the provider's SDKs for Node: sdk.mjs MODULES HOST:PORT KIND '[{"id", "secret", ...}, ...]'.
// KIND: pop-post, pop-get, openapi-v3 or openapi-v1. Prints one JSON object a call: what the SDK returned, or the
// code of what it threw.
import { createRequire } from "node:module";

const [, , modules, endpoint, kind, list] = process.argv;
const require = createRequire(`${modules}/`);

const pop = (method) => {
  const { RPCClient } = require("@alicloud/pop-core");
  return (call) => {
    const client = new RPCClient({
      accessKeyId: call.id,
      accessKeySecret: call.secret,
      endpoint: `http://${endpoint}`,
      apiVersion: "2020-04-20",
    });
    const parameters = { InstanceId: call.instance, MqttTopic: call.topic, Payload: call.payload };
    return client.request("SendMessage", parameters, { method, timeout: 10000 });
  };
};

const openapi = (signature) => {
  const { default: Client, Config, OpenApiRequest, Params } = require("@alicloud/openapi-client");
  const { RuntimeOptions } = require("@alicloud/tea-util");
  return async (call) => {
    const config = new Config({ accessKeyId: call.id, accessKeySecret: call.secret, endpoint, protocol: "http" });
    if (signature) config.signatureAlgorithm = signature;
    const client = new Client(config);
    const params = new Params({
      action: "SendMessage",
      version: "2020-04-20",
      protocol: "HTTP",
      pathname: "/",
      method: "POST",
      authType: "AK",
      style: "RPC",
      reqBodyType: "formData",
      bodyType: "json",
    });
    const query = { InstanceId: call.instance, MqttTopic: call.topic, Payload: call.payload };
    const answer = await client.callApi(params, new OpenApiRequest({ query }), new RuntimeOptions({}));
    return answer.body;
  };
};

const publish = { "pop-post": pop("POST"), "pop-get": pop("GET") }[kind] ?? openapi(kind === "openapi-v1" ? "v2" : undefined);
for (const call of JSON.parse(list)) {
  let result;
  try {
    result = await publish(call);
  } catch (error) {
    if (!error.code) throw error;
    result = { Code: error.code, Message: error.message };
  }
  console.log(JSON.stringify(result));
}
