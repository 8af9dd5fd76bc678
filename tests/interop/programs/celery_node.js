// celery-node as a client and as a worker: node celery_node.js client|worker <broker> <results>
const celery = require("celery-node");

const [, , role, broker, results] = process.argv;

async function asked(result) {
  try {
    return { value: await result.get(20000, 20) };
  } catch (error) {
    return { state: error.message, type: error.exc_type, message: error.exc_message };
  }
}

async function client() {
  const client = celery.createClient(broker, results);
  const add = client.createTask("add");
  const seen = {
    added: await asked(add.delay(2, 3)),
    applied: await asked(add.applyAsync([4], { y: 5 })),
    failed: await asked(client.sendTask("fail")),
    text: await asked(client.sendTask("add", ["näh ", "☃"])),
    many: (await Promise.all([...Array(50).keys()].map((n) => asked(add.delay(n, n))))).map((each) => each.value),
  };
  client.conf.TASK_PROTOCOL = 1;
  seen.first_protocol = await asked(client.sendTask("add", [6, 7]));
  await client.disconnect();
  console.log(JSON.stringify(seen));
}

function worker() {
  const worker = celery.createWorker(broker, results);
  worker.register("node.add", (a, b) => a + b);
  worker.register("node.later", async (kwargs) => ({ got: kwargs }));
  worker.register("node.fail", () => {
    throw new Error("no");
  });
  worker.start();
  worker.isReady().then(() => console.log("ready."));
}

({ client, worker })[role]();
