"""The texts that tokenizers are made from and tried on; make.py and the tests read them."""

TRAINING = """
The quick brown fox jumps over the lazy dog. Whoever reads this isn't wrong; they've read it before, and we'll see.
I'm sure she'd say that HTTPServer2 and JSONParser are CamelCase words, whereas snake_case_words are not CAPITALS.
In 2024 there were 1,234,567 people, 3.14159 of them round; call +1 (555) 010-9999 or write to nobody@example.com.
def add(first: int, second: int = 0) -> int:
    if first > 0 and second != 1:
        return first + second  # the sum
    return {"key": [1, 2, 3], 'other': None}
Der Fluß fließt über die Brücke; schöne Grüße aus Köln. Größe, Maß, Straße und Übermut.
Le garçon a mangé une crêpe à l'école où l'été s'achève; ça n'est pas grave, n'est-ce pas ?
El niño comió piñas en la montaña. ¿Cómo estás? ¡Qué día tan bonito! Mañana será otro día.
Быстрая коричневая лиса перепрыгивает через ленивую собаку. Сегодня хорошая погода, а завтра будет дождь.
Η γρήγορη καφέ αλεπού πηδάει πάνω από το τεμπέλικο σκυλί. Καλημέρα κόσμε, τι κάνεις σήμερα;
敏捷的棕色狐狸跳过了懒狗。今天天气很好，我们去公园散步吧。学而时习之，不亦说乎？
素早い茶色の狐がのろまな犬を飛び越えた。今日はいい天気ですね。カタカナとひらがなと漢字。
빠른 갈색 여우가 게으른 개를 뛰어넘는다. 오늘은 날씨가 좋네요. 안녕하세요, 세계!
الثعلب البني السريع يقفز فوق الكلب الكسول. مرحبا بالعالم، كيف حالك اليوم؟
השועל החום המהיר קופץ מעל הכלב העצלן. שלום עולם, מה שלומך היום?
तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है। नमस्ते दुनिया, आप कैसे हैं?
สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ สวัสดีชาวโลก วันนี้อากาศดี
Con cáo nâu nhanh nhẹn nhảy qua con chó lười biếng. Xin chào thế giới, hôm nay trời đẹp quá.
Pijamalı hasta yağız şoföre çabucak güvendi. Zażółć gęślą jaźń. Příliš žluťoučký kůň úpěl ďábelské ódy.
Emoji 😀 😂 👍🏽 ❤️ 🎉 go here; and → arrows ← and ∑ math ∫ signs √ ≈ ≠ ∞, “quotes” — dashes – and … dots.
"""

HARD = [
    "",
    " ",
    "  ",
    "       ",
    "\n",
    "\n\n\n",
    "\t",
    " \n \t \r\n ",
    "\r\n\r\n",
    "\r",
    "Hello, world!",
    " Hello",
    "  Hello   world    again     ",
    "trailing spaces   ",
    "tab\tseparated\t\tvalues\n\tindented\n    four\n        eight",
    "line one\nline two\r\nline three\rline four\n\n\nline seven",
    "I'm you're he's we've they'll she'd don't I'M YOU'RE HE'S WE'VE THEY'LL SHE'D DON'T it’s",
    "'s 's' ''s 'S 'LL'll 're",
    "0 1 12 123 1234 12345 123456 1234567890123456789 3.14159 1,000,000 1e-10 0xDEADBEEF",
    "in  2024   there were 10 of 100   1000 ones",
    "² ³ ½ ⅔ Ⅷ ① ٣٤٥ ४५६ 一二三 𝟘𝟙𝟚 𑁦",
    "HTTPServer JSONParser camelCase PascalCase snake_case SCREAMING_CASE kebab-case iPhone McDonald ÀÉÎ straßE",
    "def f(x):\n\treturn x**2  # comment\n\n\nclass A:\n    pass\n",
    "!@#$%^&*()_+-=[]{}|;':\",./<>?`~ !!! ??? ... --- ### $$$ ///\n\n{}\n",
    "http://example.com/path?query=1&other=%20#fragment user@host.org /usr/local/bin C:\\Windows",
    "café cafe\u0301 e\u0301\u0302\u0323 Å A\u030a ﬁ ﬀ Ｆｕｌｌ ｗｉｄｔｈ ｶﾀｶﾅ",
    "The fox. Лиса. Η αλεπού. 狐狸。キツネ。여우. ثعلب. שועל. लोमड़ी. สุนัขจิ้งจอก."
    " ლომბარდი. Աղվես. ནམ་མཁའ། ᚠᚢᚦ 𐌰𐌱𐌲 ꦲꦏ ဗမာ ខ្មែរ",
    "مرحبا بالعالم \u200fRTL\u200e mark \u202eoverride\u202c שלום",
    "😀😂🤣 👍🏽 👨‍👩‍👧‍👦 👩🏿‍🚀 🏳️‍🌈 🇩🇪🇯🇵🇺🇸 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ❤️ ☺ 1️⃣ ©®™",
    "😀" * 12,
    "\u0000",
    "nul\u0000inside and \u0001\u0002\u0007\u0008\u001b[31mred\u001b[0m \u007f \u0080\u0085\u009f",
    "zero\u200bwidth\u200cjoiners\u200d \u2060 \ufeffBOM soft\u00adhyphen",
    "nbsp\u00a0thin\u2009ideographic\u3000line\u2028para\u2029nel\u0085ogham\u1680 mongolian\u180e narrow\u202f",
    "\u2581literal\u2581lower\u2581one\u2581eighth \u2581\u2581 ▁",
    "<s> </s> <unk> <0x41> <0x0A> <|endoftext|> <|im_start|>user\nhi<|im_end|>\n<|im_start|> <bos><eos>",
    "<|im_start|><|im_start|>  <|im_end|>x<|im_end|> y",
    "<|im_start <|im_start| >|im_end|> <think>no</think> <tool_call>",
    "Ġ Ċ ċ ĉ Ā ÿ Ã© are letters too",
    "\ufffd replacement \ufffe \uffff noncharacters \U0010ffff \U0001f9ff \ue000 private \U000f0000",
    "a" * 300,
    "supercalifragilisticexpialidocious" * 8,
    "ab" * 64 + "ba" * 64,
    "=" * 80 + "\n" + "-" * 79 + "\n",
    " " * 64 + "x" + " " * 33 + "y" + "\n" * 17,
    "Zażółć gęślą jaźń, Příliš žluťoučký kůň, đẹp quá, pijamalı ŞOFÖR İstanbul ıI",
    "ǅ ǈ ʰ ˈa ªº ſt ß ẞ ŉ ǰ",
    "𝓗𝓮𝓵𝓵𝓸 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 🄰🄱 ㎏ ㍿ ﷺ",
    "mixed中文and日本語with한국어inside без пробелов",
    "नमस्ते क्ष त्र ज्ञ श्र ตัวอย่าง ตำ",
]
