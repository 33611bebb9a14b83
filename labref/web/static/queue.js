// A queue: things that wait for a decision, one after the other. What the pages of all queues have in common.
import { ask, does, say, text } from "./labref.js";

const FEW = 3; // with fewer to come, more are asked for

/**
 * name: as `review.queues` calls the queue.  fetch: (those that are here) → what waits and is not among them.
 * show: (the thing that is looked at, undefined where nothing waits; those that come next).
 * words: {first, last, undone}, what is said at both ends and of a decision that was taken back.
 */
export class Queue {
  #waiting = []; // in their order; none is ever left out
  #at = 0;
  #busy = Promise.resolve(); // one decision after the other, however fast the keys come
  #left = Number(document.getElementById("left").textContent.replace(/\D/g, ""));
  #name;
  #fetch;
  #shows;
  #words;

  constructor(name, { fetch, show, words }) {
    [this.#name, this.#fetch, this.#shows, this.#words] = [name, fetch, show, words];
  }

  /** The thing that is looked at. */
  get now() {
    return this.#waiting[this.#at];
  }

  begin() {
    return this.#follow();
  }

  /** Look at the thing again. */
  show() {
    document.getElementById("left").textContent = this.#left;
    this.#shows(this.now, this.#waiting.slice(this.#at + 1, this.#at + 3));
  }

  /** Decide on the thing that is looked at. make: (thing) → what is said.  unmake: (thing), takes it back. */
  decide(make, unmake) {
    this.#next(async (thing, place) => {
      const done = await does(
        () => make(thing),
        async () => {
          await unmake(thing);
          this.#at = Math.min(place, this.#waiting.length);
          this.#waiting.splice(this.#at, 0, thing);
          this.#left += 1;
          this.show();
          return this.#words.undone;
        },
      );
      // where somebody else decided meanwhile it is asked for again, as it is by now
      this.#waiting.splice(this.#waiting.indexOf(thing), 1);
      this.#left = done ? Math.max(this.#left - 1, 0) : (await ask("review.queues", { queue: this.#name }))[0][this.#name];
      await this.#follow();
    });
  }

  /** Put the thing that is looked at behind all others. */
  later() {
    this.#next(async (thing, place) => {
      const put = (to) => {
        this.#waiting.splice(this.#waiting.indexOf(thing), 1);
        this.#waiting.splice(to, 0, thing);
      };
      await does(
        async () => {
          await this.#more();
          put(this.#waiting.length);
          return text("Later: it comes again at the end.");
        },
        async () => {
          put(place);
          this.#at = place;
          this.show();
        },
      );
      await this.#follow();
    });
  }

  /** Go to the thing before or after, without a decision. by: -1 or 1. */
  step(by) {
    this.#next(async () => {
      if (this.#at + by >= this.#waiting.length) await this.#more(1);
      if (this.#at + by < 0) return say(this.#words.first);
      if (this.#at + by >= this.#waiting.length) return say(this.#words.last);
      this.#at += by;
      this.show();
    });
  }

  #next(action) {
    this.#busy = this.#busy
      .then(() => this.now && action(this.now, this.#at))
      .catch((error) => say(error.message, { failed: true, seconds: 12 }));
  }

  async #more(few = FEW) {
    if (this.#waiting.length - this.#at <= few) this.#waiting.push(...(await this.#fetch(this.#waiting)));
  }

  /** Go on with the thing that took the place of the one before. */
  async #follow() {
    await this.#more(FEW - 1);
    if (this.#at >= this.#waiting.length) this.#at = 0;
    this.show();
  }
}
