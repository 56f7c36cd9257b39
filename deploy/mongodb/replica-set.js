// Makes a replica set of MEMBERS (HOST:PORT with commas) and its first user, `admin`, and logs in as that. To be run on
// the machine of the first member, which MongoDB lets make the first user. Again is well.
//
//   mongosh "mongodb://127.0.0.1/?directConnection=true" --file deploy/mongodb/replica-set.js --file deploy/mongodb/users.js
const members = process.env.MEMBERS.split(",").map((host, number) => ({ _id: number, host, priority: number ? 1 : 2 }));
const adminPassword = require("fs").readFileSync(process.env.ADMIN_PASSWORD_FILE, "utf8").trim();
const admin = db.getSiblingDB("admin");
const UNAUTHORIZED = 13;
const ALREADY_INITIALIZED = 23;

try {
  admin.runCommand({ replSetInitiate: { _id: process.env.REPLICA_SET || "rs0", members } });
} catch (error) {
  if (![UNAUTHORIZED, ALREADY_INITIALIZED].includes(error.code)) throw error;
}
while (!db.hello().isWritablePrimary) sleep(200);

try {
  admin.auth("admin", adminPassword);
} catch {
  admin.createUser({ user: "admin", pwd: adminPassword, roles: ["root"] });
  admin.auth("admin", adminPassword);
}
print(`the replica set has ${members.length} members`);
