// SPDX-License-Identifier: Apache-2.0
// Pages that are read from a folder may start no worker: there, the search's runs in a frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.window = frame.contentWindow;
      const inside = this.window.document;
      inside.open();
      inside.write("<body></body>");
      inside.close();
      this.window.postMessage = (data) =>
        this.dispatchEvent(new MessageEvent("message", { data }));
      const script = inside.createElement("script");
      script.src = url;
      this.ready = new Promise((done) => { script.onload = done; });
      inside.body.append(script);
    }

    postMessage(data) {
      this.ready.then(() => this.window.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
}
