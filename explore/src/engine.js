/** The networks in a worker, so that the page never waits for them; and the queue before it. */

import { unpackedGraph } from "./codec.js";
import { network } from "./network.js";

/** A function that answers messages: `{graphs}` once, then `{role, inputs}` with the outputs. */
export function server() {
  let graphs;
  const networks = {};
  return async (message) => {
    if (message.graphs) {
      graphs = message.graphs;
      return {};
    }
    const { role, inputs } = message;
    networks[role] ??= unpackedGraph(graphs[role]).then(network);
    const run = await networks[role];
    const outputs = Object.entries(run(inputs));
    return { outputs: Object.fromEntries(outputs.map(([name, values]) => [name, values.slice()])) };
  };
}

/** Be a worker: what the page's own program is in one. */
export function serve(scope) {
  const answer = server();
  scope.onmessage = async ({ data }) => {
    try {
      scope.postMessage(await answer(data));
    } catch (error) {
      scope.postMessage({ error: String(error) });
    }
  };
}

/**
 * Runs networks, one at a time: of what waits, the lowest priority number first.
 *
 * @param graphs - `{encoder, decoder}` with packed arrays.
 * @param program - the text of this program, which is the worker's too.
 * @param failed - called with a text where the networks cannot be run.
 */
export function engine(graphs, program, failed) {
  const waiting = new Map(); // by channel: of each, only the newest request
  let running = { resolve() {} }; // the message with the graphs
  let answered = false;
  let post;

  const finished = ({ outputs, error }) => {
    answered = true;
    if (error) failed(error);
    const { resolve } = running;
    running = null;
    resolve(outputs ?? null);
    next();
  };

  function next() {
    if (running || !waiting.size) return;
    let first = null;
    for (const [channel, request] of waiting) {
      if (!first || request.priority < first[1].priority) first = [channel, request];
    }
    waiting.delete(first[0]);
    running = first[1];
    post({ role: running.role, inputs: running.inputs });
  }

  function here() {
    const answer = server();
    post = (message) => {
      setTimeout(() =>
        answer(message).then(finished, (error) => finished({ error: String(error) })),
      );
    };
    post({ graphs });
  }

  try {
    const worker = new Worker(
      URL.createObjectURL(new Blob([program], { type: "text/javascript" })),
    );
    worker.onmessage = ({ data }) => finished(data);
    // A browser without workers from a file: the page runs the networks itself.
    worker.onerror = (event) => (answered ? failed(event.message) : here());
    post = (message) => worker.postMessage(message);
    post({ graphs });
  } catch {
    here();
  }

  return {
    /**
     * The outputs of a network by name; null where a newer request of the same channel came before.
     */
    run(channel, priority, role, inputs) {
      return new Promise((resolve) => {
        waiting.get(channel)?.resolve(null);
        waiting.delete(channel);
        waiting.set(channel, { priority, role, inputs, resolve });
        next();
      });
    },
  };
}
