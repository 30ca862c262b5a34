// Reads one streamed answer, and goes on with it on another replica when the one it reads from is gone.
//
// Each event's `id` says how far the answer is. Whoever has it can go on behind it, on any replica:
// with the header `Last-Event-ID` (fetch), or `starting_after` in the address (EventSource). Nothing is
// shown twice and nothing is left out, so there is nothing to compare or to cut here.
"use strict";

const ATTEMPTS_MAX = 30;
const PAUSE_MS = 300;

const element = (id) => document.getElementById(id);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

class Refused extends Error {} // an answer of the API that a retry elsewhere would not change

class Answer {
  constructor({ replicas, key, model, prompt, tokens }) {
    this.replicas = replicas;
    this.key = key;
    this.body = { model, messages: [{ role: "user", content: prompt }], max_tokens: tokens };
    this.turn = 0; // which replica is next
    this.requestId = null;
    this.lastId = null; // of the latest event that was shown
    this.done = false;
    // A request that may have been accepted is asked for again under the same key: it runs once.
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    this.idempotencyKey = Array.from(bytes, (it) => it.toString(16).padStart(2, "0")).join("");
  }

  get base() {
    return this.replicas[this.turn % this.replicas.length];
  }

  // Calls `read` until the answer is complete, on the next replica after each failure.
  async run(read) {
    for (let attempt = 0; attempt < ATTEMPTS_MAX && !this.done; attempt += 1) {
      element("replica").textContent = this.base;
      const before = this.lastId;
      try {
        await read.call(this);
      } catch (error) {
        if (error instanceof Refused) throw error;
        tell(`${this.base}: ${error.message}, after event ${this.lastId}`);
      }
      if (this.done) return;
      this.turn += 1;
      if (this.lastId !== before) attempt = 0; // it goes on: only attempts in vain are counted
      await pause(PAUSE_MS);
    }
    if (!this.done) throw new Error("no replica could go on with it");
  }

  headers(more = {}) {
    return { Authorization: `Bearer ${this.key}`, "Content-Type": "application/json", ...more };
  }

  async call(path, options) {
    const response = await fetch(this.base + path, { headers: this.headers(), ...options });
    if (response.ok) return response;
    const { error } = await response.json().catch(() => ({ error: { message: response.statusText } }));
    // 5xx and 409 (the same key is being used right now) pass; the rest is meant
    throw response.status >= 500 || response.status === 409
      ? new Error(error.message)
      : new Refused(error.message);
  }

  // One event of the stream, whichever way it came. Returns true at the end.
  take(id, data) {
    if (data === "[DONE]") {
      this.done = true;
      return true;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) {
      // "shutting_down" and its like: the request runs on, and another replica tells the rest
      const passing = ["shutting_down", "unavailable"].includes(chunk.error.code);
      throw passing ? new Error(chunk.error.message) : new Refused(chunk.error.message);
    }
    element("answer").textContent += chunk.choices[0]?.delta?.content ?? "";
    if (id) this.lastId = id;
    return false;
  }

  // --- with fetch

  async readByFetch() {
    const response = this.requestId
      ? await this.call(`/v1/requests/${this.requestId}/stream`, {
          headers: this.headers(this.lastId ? { "Last-Event-ID": this.lastId } : {}),
        })
      : await this.call("/v1/chat/completions", {
          method: "POST",
          headers: this.headers({
            "Idempotency-Key": this.idempotencyKey,
            Prefer: "inferlog=attach",
          }),
          body: JSON.stringify({ ...this.body, stream: true }),
        });
    if (response.status === 204) {
      this.done = true; // all of it was shown before
      return;
    }
    this.requestId = response.headers.get("X-Request-Id");
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    try {
      for (;;) {
        const { value, done } = await reader.read();
        if (done) throw new Error("the stream ended early");
        text += value;
        const blocks = text.split("\n\n");
        text = blocks.pop(); // not complete yet
        for (const block of blocks) {
          const lines = block.split("\n");
          const field = (name) => lines.find((it) => it.startsWith(`${name}: `))?.slice(name.length + 2);
          if (field("data") !== undefined && this.take(field("id"), field("data"))) return;
        }
      }
    } finally {
      reader.cancel().catch(() => {});
    }
  }

  // --- with EventSource, which sends no headers: a ticket opens one stream once

  async readByEventSource() {
    if (!this.requestId) {
      const accepted = await this.call("/v1/requests", {
        method: "POST",
        headers: this.headers({ "Idempotency-Key": this.idempotencyKey, Prefer: "inferlog=attach" }),
        body: JSON.stringify({ endpoint: "/v1/chat/completions", body: this.body }),
      });
      this.requestId = (await accepted.json()).id;
    }
    if (this.lastId && (await this.isRead())) {
      this.done = true; // the stream would answer 204, which an EventSource cannot tell
      return;
    }
    const issued = await this.call(`/v1/requests/${this.requestId}/ticket`, { method: "POST" });
    const query = new URLSearchParams({ ticket: (await issued.json()).ticket });
    if (this.lastId) query.set("starting_after", this.lastId);
    const source = new EventSource(`${this.base}/v1/requests/${this.requestId}/stream?${query}`);
    try {
      await new Promise((resolve, reject) => {
        source.onmessage = (event) => {
          try {
            if (this.take(event.lastEventId, event.data)) resolve();
          } catch (error) {
            reject(error);
          }
        };
        // By itself it would come back with the same ticket, which is used up.
        source.onerror = () => reject(new Error("the connection was lost"));
      });
    } finally {
      source.close();
    }
  }

  async isRead() {
    const request = await (await this.call(`/v1/requests/${this.requestId}`)).json();
    const tokens = request.response?.usage.completion_tokens;
    return request.status === "completed" && Number(this.lastId) >= tokens;
  }
}

function tell(text) {
  const line = document.createElement("li");
  line.textContent = text;
  element("log").append(line);
}

element("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  element("answer").textContent = "";
  element("log").textContent = "";
  element("state").textContent = "reading";
  const value = (id) => element(id).value.trim();
  const answer = new Answer({
    replicas: value("replicas").split(",").map((it) => it.trim().replace(/\/$/, "")),
    key: value("key"),
    model: value("model"),
    prompt: value("prompt"),
    tokens: Number(value("tokens")),
  });
  try {
    await answer.run(value("mode") === "fetch" ? answer.readByFetch : answer.readByEventSource);
    element("state").textContent = "complete";
  } catch (error) {
    tell(error.message);
    element("state").textContent = "failed";
  }
});
