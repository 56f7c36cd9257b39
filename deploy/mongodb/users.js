// Makes the service's role and user, or brings them up to date. TURNKEEPER_PASSWORD_FILE names a file with the user's
// password; without it the shell asks for one.
//
//   mongosh "mongodb://admin@mongo-1,mongo-2,mongo-3/?replicaSet=rs0" --file deploy/mongodb/users.js
//
// Another database than `turnkeeper`: change "db" in role.json.
const { createRole: name, privileges, roles } = JSON.parse(
  require("fs").readFileSync(require("path").join(__dirname, "role.json"), "utf8"),
);
const database = db.getSiblingDB(privileges[0].resource.db);
const file = process.env.TURNKEEPER_PASSWORD_FILE;
const password = file ? require("fs").readFileSync(file, "utf8").trim() : passwordPrompt();

if (database.getRole(name)) database.updateRole(name, { privileges, roles });
else database.createRole({ role: name, privileges, roles });

if (database.getUser(name)) database.updateUser(name, { pwd: password, roles: [name] });
else database.createUser({ user: name, pwd: password, roles: [name] });

print(`the user ${name} has the role ${name} of the database ${database.getName()}`);
