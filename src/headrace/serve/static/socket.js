// The live stream: connects, comes back by itself with the last number seen, rests while the page is hidden.

const LONGEST_WAIT_MS = 8000;
const SILENCE_MS = 6000;

export class Live {
  constructor(onFrame, onState) {
    this.onFrame = onFrame; this.onState = onState;
    this.seq = null; this.wait = 500; this.heard = 0; this.socket = null; this.timer = 0;
    document.addEventListener("visibilitychange", () => (document.hidden ? this.close() : this.open()));
    setInterval(() => this.check(), 1000);
    this.open();
  }

  open() {
    clearTimeout(this.timer);
    if (this.socket || document.hidden) return;
    const since = this.seq === null ? "" : `?since=${this.seq}`;
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws/dashboard${since}`);
    this.socket = socket;
    this.opened = performance.now();
    socket.onmessage = ({ data }) => {
      if (socket !== this.socket) return;
      const frame = JSON.parse(data);
      this.seq = frame.seq; this.heard = performance.now(); this.wait = 500;
      this.onFrame(frame);
      this.onState(true, 0);
    };
    socket.onclose = () => { if (socket === this.socket) this.again(); };
  }

  close() {
    clearTimeout(this.timer);
    const socket = this.socket;
    this.socket = null;
    socket?.close();
  }

  again() {
    this.close();
    this.tell();
    this.timer = setTimeout(() => this.open(), this.wait * (0.75 + Math.random() / 2));
    this.wait = Math.min(this.wait * 2, LONGEST_WAIT_MS);
  }

  check() {
    if (document.hidden) return;
    const silent = performance.now() - Math.max(this.heard, this.opened ?? 0);
    if (this.socket && silent > SILENCE_MS) this.again();
    else if (performance.now() - this.heard > 3000) this.tell();
  }

  tell() { this.onState(false, this.heard ? performance.now() - this.heard : null); }
}
