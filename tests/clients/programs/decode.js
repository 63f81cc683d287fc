// A Node client without generated code: reads the .proto, and prints what a stream of JetStream's protocol says.
// node decode.js FOLDER_WITH_THE_PROTO TARGET PROMPT MAX_TOKENS

const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const [folder, target, prompt, maxTokens] = process.argv.slice(2);
const definition = protoLoader.loadSync("jetstream/jetstream.proto", { includeDirs: [folder], keepCase: true });
const { Orchestrator } = grpc.loadPackageDefinition(definition).jetstream_proto;
const client = new Orchestrator(target, grpc.credentials.createInsecure());

const samples = [];
const call = client.Decode({ text_content: { text: prompt }, max_tokens: Number(maxTokens) });
call.on("data", (message) => samples.push(message.stream_content.samples[0]));
call.on("error", (error) => {
  console.error(error.message);
  process.exitCode = 1;
});
call.on("end", () => {
  console.log(JSON.stringify({ texts: samples.map((s) => s.text), token_ids: samples.flatMap((s) => s.token_ids) }));
  client.close();
});
