// A Node client without generated code: it reads the .proto files, and writes an answer as it comes.
//
//   npm install @grpc/grpc-js @grpc/proto-loader
//   node client.js serving/rpc/protos 127.0.0.1:50051 "What is the capital of France?"

const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const [folder, target, question] = process.argv.slice(2);
const definition = protoLoader.loadSync("distaff/v1/inference.proto", {
  includeDirs: [folder],
  defaults: true,
  enums: String,
  longs: String,
  oneofs: true,
});
const { Inference } = grpc.loadPackageDefinition(definition).distaff.v1;
const client = new Inference(target, grpc.credentials.createInsecure());

const request = {
  chat: { messages: [{ role: "user", content: question }] },
  sampling: { maxTokens: 16, temperature: 0 },
};
const call = client.Generate(request, { deadline: Date.now() + 120_000 });
call.on("data", (message) => {
  if (message.event === "delta") process.stdout.write(message.delta.text);
  if (message.event === "finished") {
    const { reason, usage } = message.finished;
    console.log(`\n[${reason}, ${usage.promptTokens} + ${usage.completionTokens} tokens]`);
  }
});
call.on("error", (error) => {
  console.error(`${grpc.status[error.code]}: ${error.details}`);
  process.exitCode = 1;
});
call.on("end", () => client.close());
