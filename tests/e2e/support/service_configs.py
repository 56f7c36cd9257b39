"""The guide's lines that give a channel a service config, put into its programs."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

CONFIGS: Final = ("direct", "mesh")
FOLDER: Final = "protos/service_config"
VARIABLE: Final = "SERVICE_CONFIG"
"""The variable in which a program gets the text."""
NODE: Final = """
const grpc = require("@grpc/grpc-js");
const { loadSync } = require("@grpc/proto-loader");
const text = process.env.SERVICE_CONFIG;
const loaded = loadSync("turnkeeper/v1/chat.proto", { includeDirs: ["PROTOS"], keepCase: true });
const { ChatService } = grpc.loadPackageDefinition(loaded).turnkeeper.v1;
const client = new ChatService("dns:///ADDRESS", grpc.credentials.createInsecure(), { LINE });
const stream = client.StreamMessage({
  session_id: "from-node",
  request_id: "message-1",
  create_session: { agent: "assistant" },
  content: [{ text: "What is the capital of France?" }],
});
stream.on("data", (response) => {
  for (const event of response.events) if (event.content_delta) process.stdout.write(event.content_delta.text);
});
stream.on("error", (error) => {
  console.log(String(error));
  process.exit(1);
});
"""
GSON: Final = """<dependencies>
    <dependency><groupId>com.google.code.gson</groupId><artifactId>gson</artifactId><version>2.11.0</version></dependency>"""


def lines(page: str) -> Mapping[str, list[str]]:
    """Returns the code of each row in the guide's table of languages, by the row's first cell."""
    table = page.partition("\n## The service configs\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", table, re.MULTILINE)
    return {language: re.findall(r"`([^`]+)`", cell) for language, cell in rows}


def hurried(config: str) -> str:
    """Returns the config with a time limit of a millisecond for each call: its calls show whether it is in effect."""
    return re.sub(r'"timeout": "[^"]+"', '"timeout": "0.001s"', config)


def put_into_program(language: str, page: str, folder: Path, *, address: str, root: Path) -> str:
    """Changes the guide's program in the folder by the guide's line. Returns the commands that run it."""
    named = lines(page)
    match language:
        case "Go":
            option, _, health = named["Go"]
            _change(
                folder / "main.go",
                (f'grpc.NewClient("{address}", ', f'grpc.NewClient("dns:///{address}", {option}, '),
                ("func main() {\n", f'func main() {{\n\ttext := os.Getenv("{VARIABLE}")\n'),
                ('\t"log"\n', f'\t"log"\n\t"os"\n\n\t{health.removeprefix("import ")}\n'),
            )
            return "go mod tidy\ngo run ."
        case "Java":
            (line, *_) = named["Java, Kotlin"]
            _change(folder / "pom.xml", ("<dependencies>", GSON))
            _change(
                folder / "src/main/java/First.java",
                ("var channel = Grpc.", f'var text = System.getenv("{VARIABLE}");\n    var builder = Grpc.'),
                (".build();\n    var chat", f";\n    {line};\n    var channel = builder.build();\n    var chat"),
                ("import io.grpc.Grpc;", "import com.google.gson.Gson;\nimport java.util.Map;\nimport io.grpc.Grpc;"),
            )
            return "mvn -q compile exec:java"
        case _:
            (line, *_) = (code for code in named["Node.js (`grpc-js`)"] if "service_config" in code)
            program = NODE.replace("PROTOS", str(root / "protos")).replace("ADDRESS", address).replace("LINE", line)
            (folder / "config.cjs").write_text(program)
            return "npm install @grpc/grpc-js@1 @grpc/proto-loader@0.8\nnode config.cjs"


def _change(file: Path, *changes: tuple[str, str]) -> None:
    text = file.read_text()
    for before, after in changes:
        assert text.count(before) == 1, (file, before)
        text = text.replace(before, after)
    file.write_text(text)
