// What @magenta/music makes of an exported model, as JSON:  node magenta_music.cjs PLACE FOLDER QUESTION
// PLACE holds node_modules, QUESTION is {"sequences": [{"notes": ...}], "z": [[...]], "interpolations": n}.
const { readFileSync } = require("fs");
const { createServer } = require("http");
const { createRequire } = require("module");
const { join, resolve } = require("path");

const [place, folder, question] = process.argv.slice(2);
const { sequences, z, interpolations } = JSON.parse(readFileSync(question, "utf-8"));
console.log = console.error; // the library greets; the answer stands alone on stdout
const load = createRequire(join(resolve(place), "here.js"));
const { MusicVAE } = load("@magenta/music/node/music_vae"); // the part that needs no Tone, which is for browsers
const tf = load("@tensorflow/tfjs");

const notes = (decoded) =>
  decoded.map((sequence) => sequence.notes.map((note) => [note.quantizedStartStep, note.quantizedEndStep, note.pitch]));

const server = createServer((request, response) => response.end(readFileSync(join(folder, request.url))));
server.listen(0, "127.0.0.1", async () => {
  const model = new MusicVAE(`http://127.0.0.1:${server.address().port}`);
  await model.initialize();
  const answer = {
    mean: await (await model.encode(sequences)).array(),
    notes: notes(await model.decode(tf.tensor2d(z))), // without a temperature the likeliest class of each step
    interpolated: notes(await model.interpolate(sequences.slice(0, 2), interpolations)),
    sampled: notes(await model.sample(2)),
  };
  server.close();
  process.stdout.write(JSON.stringify(answer));
});
