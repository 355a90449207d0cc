// The client kafkajs against a cluster: produce, consume, groups, offsets, transactions, admin.
// Prints a line for each check, as tests/lib/checks.py does.
'use strict';

const crypto = require('crypto');
const { Kafka, CompressionTypes, logLevel } = require('kafkajs');

const kafka = new Kafka({
  clientId: 'kafkajs-suite',
  brokers: process.env.BOOTSTRAP.split(','),
  logLevel: logLevel.NOTHING,
});
const unique = (prefix) => `${prefix}-${crypto.randomBytes(8).toString('hex')}`;

function equal(actual, expected, what) {
  const [a, b] = [JSON.stringify(actual), JSON.stringify(expected)];
  if (a !== b) throw new Error(`${what}: ${a} instead of ${b}`);
}

async function eventually(what, look, ms = 30000) {
  const until = Date.now() + ms;
  for (;;) {
    const found = await look();
    if (found) return found;
    if (Date.now() > until) throw new Error(`${what} did not come within ${ms} ms`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

async function withAdmin(work) {
  const admin = kafka.admin();
  await admin.connect();
  try {
    return await work(admin);
  } finally {
    await admin.disconnect();
  }
}

async function topic(partitions) {
  const name = unique('kafkajs');
  await withAdmin((admin) =>
    admin.createTopics({ waitForLeaders: true, topics: [{ topic: name, numPartitions: partitions, replicationFactor: 3 }] }));
  return name;
}

async function withProducer(options, work) {
  const producer = kafka.producer({ allowAutoTopicCreation: false, ...options });
  await producer.connect();
  try {
    return await work(producer);
  } finally {
    await producer.disconnect();
  }
}

const numbered = (from, to) => Array.from({ length: to - from }, (_, i) => ({ key: `k${from + i}`, value: `${from + i}` }));

// Reads until `count` values are there; the consumer is stopped after that, with its offsets committed.
async function read(groupId, name, count, options = {}) {
  const consumer = kafka.consumer({ groupId, sessionTimeout: 10000, ...options });
  const found = [];
  await consumer.connect();
  try {
    await consumer.subscribe({ topics: [name], fromBeginning: true });
    await consumer.run({ eachMessage: async ({ message }) => { found.push(message.value.toString()); } });
    await eventually(`${count} records`, () => found.length >= count);
    await consumer.stop();
  } finally {
    await consumer.disconnect();
  }
  return found.sort((a, b) => a - b);
}

const values = (from, to) => numbered(from, to).map((record) => record.value);

const CHECKS = [
  ['records with keys and headers come back, compressed or not', async () => {
    const name = await topic(3);
    await withProducer({}, async (producer) => {
      const sent = (records, compression) => producer.send({ topic: name, acks: -1, compression, messages: records });
      await sent(numbered(0, 50).map((record) => ({ ...record, headers: { h: 'x' } })), CompressionTypes.None);
      await sent(numbered(50, 100), CompressionTypes.GZIP);
    });
    equal(await read(unique('g'), name, 100), values(0, 100), 'the values');
  }],
  ['a group goes on where it was, and its members share the partitions', async () => {
    const [name, group] = [await topic(4), unique('g')];
    await withProducer({}, (producer) => producer.send({ topic: name, messages: numbered(0, 20) }));
    equal(await read(group, name, 20), values(0, 20), 'the first time');
    await withProducer({}, (producer) => producer.send({ topic: name, messages: numbered(20, 30) }));
    equal(await read(group, name, 10), values(20, 30), 'the second time');
    const members = [kafka.consumer({ groupId: group }), kafka.consumer({ groupId: group })];
    try {
      for (const member of members) {
        await member.connect();
        await member.subscribe({ topics: [name] });
        await member.run({ eachMessage: async () => {} });
      }
      await withAdmin((admin) => eventually('two members', async () => {
        const [described] = (await admin.describeGroups([group])).groups;
        return described.state === 'Stable' && described.members.length === 2;
      }));
    } finally {
      await Promise.all(members.map((member) => member.disconnect()));
    }
  }],
  ['offsets are fetched, set and deleted with their group', async () => {
    const [name, group] = [await topic(1), unique('g')];
    await withProducer({}, (producer) => producer.send({ topic: name, messages: numbered(0, 10) }));
    await read(group, name, 10);
    await withAdmin(async (admin) => {
      const offset = async () => (await admin.fetchOffsets({ groupId: group, topics: [name] }))[0].partitions[0].offset;
      equal(await offset(), '10', 'after the consumer');
      await admin.setOffsets({ groupId: group, topic: name, partitions: [{ partition: 0, offset: '4' }] });
      equal(await offset(), '4', 'set');
      await admin.deleteGroups([group]);
      equal((await admin.listGroups()).groups.some((each) => each.groupId === group), false, 'the group is there');
    });
  }],
  ['an idempotent producer writes each record once', async () => {
    const name = await topic(2);
    await withProducer({ idempotent: true, maxInFlightRequests: 1 }, async (producer) => {
      for (let i = 0; i < 20; i += 1) await producer.send({ topic: name, messages: numbered(i * 5, i * 5 + 5) });
    });
    equal(await read(unique('g'), name, 100), values(0, 100), 'the values');
  }],
  ['of transactions only what was committed is read, with the offsets sent in them', async () => {
    const [source, target, group] = [await topic(1), await topic(2), unique('g')];
    const options = { idempotent: true, maxInFlightRequests: 1, transactionalId: unique('x') };
    await withProducer(options, async (producer) => {
      for (let round = 0; round < 6; round += 1) {
        const transaction = await producer.transaction();
        await transaction.send({ topic: target, messages: numbered(round * 10, round * 10 + 10) });
        const partitions = [{ partition: 0, offset: `${round + 1}` }];
        await transaction.sendOffsets({ consumerGroupId: group, topics: [{ topic: source, partitions }] });
        await (round % 2 === 0 ? transaction.commit() : transaction.abort());
      }
    });
    const committed = [0, 2, 4].flatMap((round) => values(round * 10, round * 10 + 10));
    equal(await read(unique('g'), target, 30), committed, 'the values');
    await withAdmin((admin) => eventually('the committed offset', async () =>
      (await admin.fetchOffsets({ groupId: group, topics: [source] }))[0].partitions[0].offset === '5'));
  }],
  ['a producer is fenced by the next one of its transactional id', async () => {
    const [name, transactionalId] = [await topic(1), unique('x')];
    const options = { idempotent: true, maxInFlightRequests: 1, transactionalId, retry: { retries: 2 } };
    await withProducer(options, async (first) => {
      const open = await first.transaction();
      await open.send({ topic: name, messages: numbered(0, 5) });
      await withProducer(options, async (second) => {
        const next = await second.transaction();
        await next.send({ topic: name, messages: numbered(5, 10) });
        await next.commit();
      });
      const outcome = await open.commit().then(() => 'committed', () => 'refused');
      equal(outcome, 'refused', 'the first one');
    });
    equal(await read(unique('g'), name, 5), values(5, 10), 'the values');
  }],
];

async function main() {
  let failed = 0;
  for (const [sentence, check] of CHECKS) {
    const begun = Date.now();
    try {
      await check();
      console.log(`ok ${sentence} (${((Date.now() - begun) / 1000).toFixed(1)} s)`);
    } catch (error) {
      failed += 1;
      console.log(`FAIL ${sentence}: ${error.name}: ${String(error.message).split('\n')[0]}`);
      console.error(error);
    }
  }
  console.log(`done: ${CHECKS.length} checks`);
  process.exit(failed ? 1 : 0);
}

main();
